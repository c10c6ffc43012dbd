//! What operators write, and what they are told.

use expect_test::{Expect, expect};

use leaseward_state::server::HookStep;

use super::*;

fn refused(text: &str, expected: Expect) {
    let problem = ServerFile::from_toml(text).expect_err("refused");
    expected.assert_eq(&format!("{} {}", problem.code, problem.detail));
}

#[test]
fn a_whole_file_means_what_it_says_and_comes_back_the_same() {
    let file = ServerFile::from_toml(
        r#"
        name = "pay-1"
        command = ["/usr/bin/pay", "--port", "80"]
        stop = ["/usr/bin/pay", "stop"]
        cwd = "/srv/pay"
        user = "pay"
        candidates = ["m3", "m1"]
        requires_fence = "F2"
        grace = "250ms"
        stop_grace = "10s"
        priority = 5
        config = ["app"]
        env = { LANG = "C" }

        [check]
        type = "http"
        url = "http://127.0.0.1:80/health"
        interval = "5s"

        [restart]
        in_place = 1
        backoff = ["0s", "1s"]
        "#,
    )
    .unwrap();
    let spec = file.to_spec().unwrap();
    assert_eq!((spec.start_timeout_ms, spec.stop_grace_ms, spec.grace_ms), (60_000, 10_000, Some(250)));
    assert_eq!((spec.restart.in_place, spec.restart.cluster), (1, 6));
    assert_eq!(spec.check.as_ref().map(|check| (check.interval_ms, check.misses)), Some((5_000, 3)));
    let again = ServerFile::from_spec("pay-1", &spec);
    assert_eq!(again.to_spec().unwrap(), spec);
    assert_eq!(ServerFile::from_toml(&again.to_toml().unwrap()).unwrap(), again);
    assert_eq!(serde_json::from_str::<ServerFile>(&serde_json::to_string(&again).unwrap()).unwrap(), again);
}

#[test]
fn mistakes_are_named_with_their_line_and_a_suggestion() {
    refused(
        "command = [\"a\"]\ncandidats = [\"m1\"]\n",
        expect!["LW0103 line 2: unknown key `candidats`: did you mean `candidates`?"],
    );
    refused(
        "command = [\"a\"]\n[check]\ntype = \"tpc\"\n",
        expect!["LW0101 line 3: `tpc` is not one of `process`, `tcp`, `http`, `command`: did you mean `tcp`?"],
    );
    refused("command = []", expect![[r#"LW0101 `command` needs a program, such as ["/usr/bin/pay", "--port", "80"]"#]]);
    refused("name = \"x\"", expect!["LW0101 line 1: missing field `command`"]);
    refused(
        "command = [\"a\"]\nstop_grace = \"soon\"",
        expect![
            "LW0101 line 2: `soon` is not a duration: write a whole number and ms, s, m, h or d, such as 250ms or 3s"
        ],
    );
    refused(
        "command = [\"a\"]\nrequires_fence = \"F0\"",
        expect![[
            r#"LW0101 `grace` is needed with `requires_fence = "F0"`: only you know how long a copy may outlive its lease there"#
        ]],
    );
    refused(
        "command = [\"a\"]\n[check]\ntype = \"tcp\"\nurl = \"http://x\"",
        expect!["LW0101 `check.address` is missing for this type of check"],
    );
}

#[test]
fn what_surrounds_a_server_comes_back_with_every_default_written_out() {
    let text = r#"
        command = ["/usr/bin/pay"]
        labels = { disk = "ssd" }
        anti_affinity = ["pay-2"]
        weight = 4
        auto_migrate = false
        failback = "auto-after 10m"
        grace = "1m"
        state_file = "/run/pay.state"
        limits = { memory_mib = 512, cpu_percent = 150, processes = 99 }
        mounts = [{ device = "/dev/sdb1", at = "/srv/pay", type = "xfs", options = ["noatime"] }]

        [[vips]]
        ip = "10.0.0.51"
        announce = "after_ready"
        fence = "nft"

        [[vips]]
        ip = "FE80::0:51"
        interface = "eth1"
        tickle = false

        [hooks]
        pre_start = { command = ["/bin/a", "-v"] }
        address_del = { command = ["/bin/b"], timeout = "7s" }
    "#;
    let spec = ServerFile::from_toml(text).expect("read").to_spec().expect("a specification");
    assert_eq!(spec.hooks[&HookStep::PreStart].timeout_ms, 30_000);
    assert_eq!(spec.addresses[1].ip, "fe80::51", "in its usual form");
    assert_eq!(spec.limits.memory_bytes, Some(512 << 20));
    let shown = ServerFile::from_spec("pay-1", &spec);
    let again = ServerFile::from_toml(&shown.to_toml().expect("written")).expect("read again");
    assert_eq!((&again, again.to_spec().expect("the same")), (&shown, spec));
}

#[test]
fn surroundings_that_cannot_be_are_refused_with_the_key() {
    for (text, why) in [
        ("vips = [{ ip = \"10.0.0.51/24\" }]", "without a prefix"),
        ("vips = [{ ip = \"224.0.0.1\" }]", "cannot belong to one machine"),
        ("vips = [{ ip = \"10.0.0.51\", fence = \"iptables\" }]", "nft"),
        ("grace = \"1s\"\nmounts = [{ device = \"/dev/x\", at = \"/srv/../etc\", type = \"ext4\" }]", "`mounts.at`"),
        ("mounts = [{ device = \"/dev/x\", at = \"/srv\", type = \"ext4\" }]", "`grace` is needed with `mounts`"),
        ("hooks.pre_strat.command = [\"/bin/true\"]", "did you mean `pre_start`?"),
        ("hooks.pre_start.command = [\"true\"]", "absolute path"),
        ("limits = { processes = 0 }", "`limits`"),
        ("failback = \"soon\"", "`failback`"),
        ("anti_affinity = [\"a b\"]", "`anti_affinity`"),
        ("state_file = \"pay.state\"", "`state_file`"),
        ("requires_fence = \"F5\"", "`grace`"),
    ] {
        let problem = ServerFile::from_toml(&format!("command = [\"a\"]\n{text}")).expect_err(text);
        assert!(problem.detail.contains(why), "{text}: {}", problem.detail);
    }
    let with_watchdog = "command = [\"a\"]\nrequires_fence = \"F4\"\nmounts = [{ device = \"/dev/x\", at = \"/srv\", type = \"ext4\" }]";
    assert!(ServerFile::from_toml(with_watchdog).is_ok(), "the watchdog resets the machine");
}

#[test]
fn the_example_shows_every_field() {
    let shown = include_str!("../../../../config/examples/database.toml");
    let spec = ServerFile::from_toml(shown).expect("it is valid").to_spec().expect("a specification");
    let written = serde_json::to_value(ServerFile::from_spec("database", &spec)).expect("JSON");
    let document = crate::document();
    let fields = document["components"]["schemas"]["ServerFile"]["properties"].as_object().expect("fields");
    let missing: Vec<_> = fields
        .keys()
        .filter(|field| !matches!(field.as_str(), "name" | "env" | "manager" | "restart"))
        .filter(|field| !shown.contains(&format!("{field} =")) && !shown.contains(&format!("[{field}]")))
        .filter(|field| !shown.contains(&format!("[[{field}]]")))
        .collect();
    assert!(missing.is_empty(), "{missing:?} are not shown in {written}");
}
