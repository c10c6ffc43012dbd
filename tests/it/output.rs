//! What a server printed, asked of any node: it lies on the machine where it ran, and only the agent there can say it.

use std::fs;
use std::process::Output;

use leaseward_tests::Lab;
use serde_json::Value;

use crate::story::Story;

const COMMAND: &str = "command = [\"sh\", \"-c\", \"for i in 1 2 3 4; do echo line $i of $LEASEWARD_MACHINE; done; \
                       exec sleep 100000\"]\n";

/// Asks one voter.
fn logs(lab: &Lab, voter: usize, more: &[&str]) -> Output {
    let address = lab.api(voter).to_string();
    lab.cli(&[&["--addr", &address, "server", "logs", "talker"], more].concat())
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

async fn machine(lab: &Lab) -> Option<String> {
    let server: Value = lab.get("/v1/servers/talker").await?;
    (server["phase"] == "running").then(|| server["machine"].as_str().expect("a name").to_owned())
}

#[tokio::test]
async fn what_a_server_printed_is_asked_of_any_node() {
    let Some(mut story) = Story::lab().await else { return };
    let file = story.path("talker.toml");
    fs::write(&file, format!("candidates = [\"m2\", \"m3\", \"m1\"]\n{COMMAND}")).expect("written");
    let applied = story.lab.cli(&["server", "apply", "-f", file.to_str().expect("text")]);
    assert!(applied.status.success(), "{}", said(&applied).1);
    assert_eq!(machine(&story.lab).await.as_deref(), Some("m2"));
    for voter in 0..3 {
        assert_eq!(
            said(&logs(&story.lab, voter, &["--lines", "2"])).0,
            "line 3 of m2\nline 4 of m2\n",
            "n{}",
            voter + 1
        );
    }
    let (nothing, why) = said(&logs(&story.lab, 0, &["--machine", "m1"]));
    assert!(nothing.is_empty() && why.contains("LW0404") && why.contains("printed nothing on m1"), "{why}");
    let (nothing, why) = said(&logs(&story.lab, 0, &["--machine", "m9"]));
    assert!(nothing.is_empty() && why.contains("LW0404") && why.contains("machine/m9"), "{why}");

    // Whatever node its agent spoke with is gone: it speaks with another one.
    let dead = (story.lab.leader().await + 1) % 3;
    story.lab.kill_voter(dead);
    let asked = (dead + 1) % 3;
    assert_eq!(said(&logs(&story.lab, asked, &["--lines", "1"])).0, "line 4 of m2\n");
    story.lab.start_voter(dead);

    // The machine dies. At first nobody knows; then everybody does.
    story.lab.kill_machine(1);
    let refusal = logs(&story.lab, asked, &["--machine", "m2"]);
    let (nothing, why) = said(&refusal);
    println!("{why}");
    assert!(nothing.is_empty() && !refusal.status.success(), "{why}");
    assert!(why.contains("LW0346") && why.contains("m2 has what talker printed"), "{why}");
    let elsewhere = async |lab: &Lab| machine(lab).await.filter(|machine| machine != "m2");
    assert_eq!(story.lab.until_some("it runs elsewhere", elsewhere).await, "m3");
    let (nothing, why) = said(&logs(&story.lab, asked, &["--machine", "m2"]));
    assert!(nothing.is_empty() && why.contains("LW0346") && why.contains("not connected"), "{why}");
    assert_eq!(said(&logs(&story.lab, asked, &["--lines", "1"])).0, "line 4 of m3\n");

    // It is stopped, and what it printed stays.
    assert_eq!(story.operate(&["server", "stop", "talker"]), 0);
    assert_eq!(said(&logs(&story.lab, asked, &["--lines", "1"])).0, "line 4 of m3\n");
    story.lab.start_machine(1);
    let back = async |lab: &Lab| {
        (said(&logs(lab, asked, &["--machine", "m2", "--lines", "1"])).0 == "line 4 of m2\n").then_some(())
    };
    story.lab.until_some("m2 says what it printed there", back).await;
}
