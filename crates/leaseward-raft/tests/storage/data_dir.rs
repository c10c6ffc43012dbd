//! A data directory belongs to one node, one process, and no newer version.

use std::fs;
use std::time::Duration;

use leaseward_raft::identity::DataDir;
use leaseward_raft::{Replica, Settings, Start};

/// A node alone leads long before.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_newer_format_is_refused_and_nothing_is_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    DataDir::open(dir.path()).expect("free").claim(1, 2, 0).expect("claimed");
    for newer in ["2\n", "99", "next"] {
        fs::write(dir.path().join("VERSION"), newer).expect("written");
        let before = fs::read(dir.path().join("identity")).expect("readable");
        let error = DataDir::open(dir.path()).expect_err("it is newer");
        assert_eq!(error.code(), "LW0601");
        assert!(error.to_string().contains(newer.trim()), "{error}");
        assert_eq!(fs::read(dir.path().join("identity")).expect("readable"), before);
        assert_eq!(fs::read_to_string(dir.path().join("VERSION")).expect("readable"), newer);
    }
}

#[test]
fn a_directory_in_use_is_locked() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = DataDir::open(dir.path()).expect("free");
    assert_eq!(DataDir::open(dir.path()).expect_err("in use").code(), "LW0606");
    drop(first);
    DataDir::open(dir.path()).expect("free again");
}

#[test]
fn a_damaged_identity_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    DataDir::open(dir.path()).expect("free").claim(1, 2, 0).expect("claimed");
    let path = dir.path().join("identity");
    let whole = fs::read(&path).expect("readable");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).expect("written");
        assert_eq!(DataDir::open(dir.path()).expect_err("damaged").code(), "LW0604", "byte {at}");
    }
    fs::write(&path, &whole[..5]).expect("written");
    assert_eq!(DataDir::open(dir.path()).expect_err("cut").code(), "LW0604");
}

#[test]
fn a_copy_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    DataDir::open(&one).expect("free").claim(1, 2, 0).expect("claimed");
    assert!(DataDir::open(&one).expect("free").is_in_place());
    fs::create_dir(&two).expect("made");
    for name in ["VERSION", "anchor", "identity"] {
        fs::copy(one.join(name), two.join(name)).expect("copied");
    }
    let copy = DataDir::open(&two).expect("free");
    assert_eq!(copy.identity().map(|identity| identity.node), Some(2));
    assert!(!copy.is_in_place());
}

/// A first start that is refused, or dies, after the directory became the first node's must not leave a cluster that never begins.
#[tokio::test]
async fn a_cluster_begins_though_its_first_start_did_not_come_to_it_and_begins_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = taken.local_addr().expect("bound");
    let settings = |at| Settings::new("n", dir.path(), at);
    let free = "127.0.0.1:0".parse().expect("an address");
    let Err(refused) = Replica::start(settings(at), Start::Bootstrap).await else { panic!("two listen there") };
    assert_eq!(refused.code(), "LW0600");
    let claimed = DataDir::open(dir.path()).expect("free").identity().expect("it is a node's").clone();

    let leads = async |replica: &Replica| {
        replica.ready().await;
        let mut reign = replica.reign().expect("it takes part");
        let leads = reign.wait_for(Option::is_some);
        tokio::time::timeout(PATIENCE, leads).await.is_ok_and(|leads| leads.is_ok())
    };
    for _ in 0..2 {
        let replica = Replica::start(settings(free), Start::Bootstrap).await.expect("it starts");
        assert!(leads(&replica).await, "the cluster never began");
        assert_eq!(replica.cluster(), claimed.cluster);
        replica.stop().await;
        drop(replica);
    }
    // Who loses what was committed must not begin the cluster again.
    assert!(!DataDir::open(dir.path()).expect("free").is_beginning());
}

#[tokio::test]
async fn a_node_does_not_start_on_what_it_cannot_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = || Settings::new("n", dir.path(), "127.0.0.1:0".parse().expect("an address"));
    let start = async || match Replica::start(settings(), Start::Bootstrap).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.code().to_owned(),
    };
    fs::write(dir.path().join("VERSION"), "2").expect("written");
    assert_eq!(start().await, "LW0601");
    fs::write(dir.path().join("VERSION"), "1").expect("written");
    let held = DataDir::open(dir.path()).expect("free");
    assert_eq!(start().await, "LW0606");
    drop(held);
    DataDir::open(dir.path()).expect("free").claim(1, 2, 0).expect("claimed");
    fs::create_dir(dir.path().join("wal")).expect("made");
    fs::write(dir.path().join("wal/wal-00000000000000000001.log"), [0x55; 4096]).expect("written");
    fs::write(dir.path().join("wal/wal-00000000000000000002.log"), [0; 4096]).expect("written");
    assert_eq!(start().await, "LW0604");
}
