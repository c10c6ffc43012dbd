//! Samples of who may ask what.

use leaseward_state::access::{AccessToken, Role};
use leaseward_state::config::Digest;
use leaseward_state::{TokenName, UnixMillis};

pub(crate) fn roles() -> Vec<Role> {
    vec![Role::Viewer, Role::Operator, Role::Publisher("s*".into()), Role::Holder("l/".into()), Role::Admin]
}

pub(crate) fn token_name() -> TokenName {
    TokenName::new("t").expect("a name")
}

pub(crate) fn access_token() -> AccessToken {
    let hash = Digest([9; 32]);
    AccessToken { hash, roles: roles(), until: Some(UnixMillis(6)), by: "b".into(), made: UnixMillis(5) }
}
