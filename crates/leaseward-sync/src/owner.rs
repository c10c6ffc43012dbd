//! Whom the files of a set belong to, by name.

use nix::unistd::{Group, User};

use crate::apply::Owner;
use crate::error::{Error, Result};

/// Returns the numbers of `user` or `user:group`; either may be a number itself. Without a group it is the user's own.
pub(crate) fn find(text: &str) -> Result<Owner> {
    let refuse = |why: &str| Error::unusable(format!("`{text}` as the owner"), why);
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let known = User::from_name(user).ok().flatten();
    let number = match &known {
        Some(user) => user.uid.as_raw(),
        None => user.parse().map_err(|_| refuse("this machine knows no such user"))?,
    };
    let group = match group {
        Some(group) => match Group::from_name(group).ok().flatten() {
            Some(group) => group.gid.as_raw(),
            None => group.parse().map_err(|_| refuse("this machine knows no such group"))?,
        },
        None => known.map_or(number, |user| user.gid.as_raw()),
    };
    Ok(Owner { user: number, group })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!(find("root").unwrap(), Owner { user: 0, group: 0 });
        assert_eq!(find("0:12345").unwrap(), Owner { user: 0, group: 12345 });
        assert!(find("nobody-of-that-name").unwrap_err().to_string().contains("no such user"));
        assert!(find("root:nobody-of-that-name").is_err());
    }
}
