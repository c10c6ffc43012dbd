//! Plays simulations, each in a process of its own: `leaseward-sim --seeds 100`, `leaseward-sim --seed 7 --trace`.

mod many;
mod one;

use std::process::ExitCode;

/// What was asked for.
#[derive(Debug, Clone, Default)]
struct Wanted {
    /// This seed alone, in this process.
    seed: Option<u64>,
    /// So many seeds.
    seeds: Option<u64>,
    /// The first of them.
    from: Option<u64>,
    /// For so many minutes at most.
    minutes: Option<f64>,
    scenario: Option<String>,
    /// A rule that is switched off.
    broken: Option<String>,
    /// Every event is printed.
    trace: bool,
}

const USAGE: &str = "leaseward-sim [--seeds N] [--from SEED] [--minutes M] [--seed SEED [--trace]] [--scenario NAME] \
                     [--break RULE]";

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is no number"));
        match argument.as_str() {
            "--seed" => wanted.seed = Some(number(value()?)?),
            "--seeds" => wanted.seeds = Some(number(value()?)?),
            "--from" => wanted.from = Some(number(value()?)?),
            "--minutes" => {
                let text = value()?;
                wanted.minutes = Some(text.parse().map_err(|_| format!("{text} is no number"))?);
            }
            "--scenario" => wanted.scenario = Some(value()?),
            "--break" => wanted.broken = Some(value()?),
            "--trace" => wanted.trace = true,
            other => return Err(format!("{other}?")),
        }
    }
    Ok(wanted)
}

fn main() -> ExitCode {
    let wanted = match parse(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match wanted.seed {
        Some(seed) => one::play(seed, &wanted),
        None => many::play(&wanted),
    }
}
