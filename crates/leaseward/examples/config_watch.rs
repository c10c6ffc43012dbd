//! A program that follows a config file: it takes each version that makes sense, and says so.
//!
//! ```text
//! mkdir limits; echo 'max = 10' > limits/limits.toml; leaseward config publish app --from limits
//! cargo run -p leaseward --example config_watch -- 127.0.0.1:7421      where the cluster's nodes listen for peers
//! leaseward config monitor app
//! ```

use leaseward::Cluster;
use serde::Deserialize;

/// What stands in `limits.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    max: u32,
}

/// Takes new limits, or says why not.
fn apply(limits: &Limits) -> Result<(), String> {
    if limits.max == 0 {
        return Err("max is 0: nobody could come in".to_owned());
    }
    println!("at most {} from now on", limits.max);
    Ok(())
}

#[tokio::main]
async fn main() -> leaseward::Result<()> {
    let addresses = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7421".to_owned());
    let cluster = Cluster::connect(&addresses).await?;
    let mut limits = cluster.config::<Limits>("app", "limits.toml").await?;
    if let Err(why) = apply(&limits.current().value) {
        limits.rejected(limits.current().version, why).await?;
    }
    loop {
        let new = limits.changed().await?;
        let said = match apply(&new.value) {
            Ok(()) => limits.applied(new.version).await,
            Err(why) => limits.rejected(new.version, why).await,
        };
        // What the monitor has not heard yet it hears later: no reason to end.
        if let Err(error) = said {
            eprintln!("v{}: {error}", new.version);
        }
    }
}
