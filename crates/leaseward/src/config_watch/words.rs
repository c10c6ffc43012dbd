//! What a program was given, what it said, and what the monitor hears of it. Pure.
//!
//! Must stay true: a word about a version that is older than the last one the program spoke of changes nothing; versions
//! with the same file are one version to the program, and what it says counts for all of them.

use leaseward_state::config::program::RejectedVersion;

/// What the program says of what it was given last.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    None,
    Applied,
    Rejected(String),
}

/// What was given and said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words {
    /// The version under which the program knows its newest file.
    given: u64,
    /// The newest version with that file.
    same: u64,
    /// What it says of it.
    word: Word,
    /// The newest version that it spoke of.
    spoke_of: u64,
    /// What it works with until it says that it works with the newest.
    before: u64,
    /// Another version that was refused: one that could not be read, or an older one.
    refused: Option<RejectedVersion>,
}

impl Words {
    /// Returns the words of a program that begins with a version: it works with it until it says otherwise.
    pub(crate) fn beginning(version: u64) -> Self {
        Self { given: version, same: version, word: Word::Applied, spoke_of: 0, before: 0, refused: None }
    }

    /// The program gets a version.
    pub(crate) fn give(&mut self, version: u64) {
        self.look_back(version);
        self.before = self.works_with();
        (self.given, self.same, self.word, self.refused) = (version, version, Word::None, None);
    }

    /// The set is another one: its numbers say nothing of what was given before. A version of it follows.
    pub(crate) fn begin_anew(&mut self) {
        self.same = u64::MAX;
    }

    /// A version has the file that the program knows.
    pub(crate) fn unchanged(&mut self, version: u64) {
        if version < self.same {
            (self.given, self.spoke_of, self.before) = (version, 0, 0);
        }
        (self.same, self.refused) = (version, None);
    }

    /// A version cannot be given to the program.
    pub(crate) fn unreadable(&mut self, version: u64, why: String) {
        self.look_back(version);
        self.refused = Some(RejectedVersion { version, why });
    }

    /// The program works with a version.
    pub(crate) fn applied(&mut self, version: u64) {
        if !self.hears(version) {
            return;
        }
        self.spoke_of = version;
        let works_with = if version == self.given {
            self.word = Word::Applied;
            self.same
        } else {
            self.before = version;
            version
        };
        self.refused = self.refused.take().filter(|refused| refused.version > works_with);
    }

    /// The program does not take a version.
    pub(crate) fn rejected(&mut self, version: u64, why: String) {
        if !self.hears(version) {
            return;
        }
        self.spoke_of = version;
        if version == self.given {
            self.word = Word::Rejected(why);
        } else if self.refused.as_ref().is_none_or(|refused| refused.version <= version) {
            self.refused = Some(RejectedVersion { version, why });
        }
    }

    fn hears(&self, version: u64) -> bool {
        (self.spoke_of..=self.given).contains(&version)
    }

    /// Numbers go back where a set was forgotten and made anew, and where an operator pins everybody: what was given before
    /// has no number any more that says something.
    fn look_back(&mut self, version: u64) {
        if version < self.same {
            *self = Self { given: 0, same: 0, word: Word::None, spoke_of: 0, before: 0, refused: None };
        }
    }

    /// Returns the version that the program works with; 0 if none.
    pub(crate) fn works_with(&self) -> u64 {
        if self.word == Word::Applied { self.same } else { self.before }
    }

    /// Returns the newest version that is refused, if it is newer than what the program works with.
    pub(crate) fn refused(&self) -> Option<RejectedVersion> {
        let by_program = match &self.word {
            Word::Rejected(why) => Some(RejectedVersion { version: self.same, why: why.clone() }),
            Word::None | Word::Applied => None,
        };
        self.refused.clone().into_iter().chain(by_program).max_by_key(|refused| refused.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the monitor hears: what it works with, and what is refused.
    fn heard(words: &Words) -> (u64, Option<(u64, String)>) {
        (words.works_with(), words.refused().map(|refused| (refused.version, refused.why)))
    }

    fn refused(version: u64, why: &str) -> Option<(u64, String)> {
        Some((version, why.to_owned()))
    }

    #[test]
    fn a_program_applies_one_version_and_refuses_the_next() {
        let mut words = Words::beginning(1);
        assert_eq!(heard(&words), (1, None));
        words.give(2);
        assert_eq!(heard(&words), (1, None));
        words.applied(2);
        assert_eq!(heard(&words), (2, None));
        words.give(3);
        words.rejected(3, "too many".into());
        assert_eq!(heard(&words), (2, refused(3, "too many")));
        words.rejected(3, "too many".into());
        words.applied(2);
        assert_eq!(heard(&words), (2, refused(3, "too many")), "an older version is not spoken of again");
        words.applied(9);
        assert_eq!(heard(&words), (2, refused(3, "too many")), "nor one that was never given");
        words.give(4);
        assert_eq!(heard(&words), (2, None));
        words.applied(4);
        assert_eq!(heard(&words), (4, None));
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_the_program() {
        let mut words = Words::beginning(1);
        words.unreadable(2, "line 1".into());
        assert_eq!(heard(&words), (1, refused(2, "line 1")));
        words.give(3);
        words.unreadable(4, "line 4".into());
        words.applied(3);
        assert_eq!(heard(&words), (3, refused(4, "line 4")), "its word about the one before still counts");
        words.unchanged(5);
        assert_eq!(heard(&words), (5, None), "and now it is right again");
    }

    #[test]
    fn versions_with_the_same_file_are_one() {
        let mut words = Words::beginning(1);
        words.unchanged(2);
        assert_eq!(heard(&words), (2, None));
        words.give(3);
        words.unchanged(4);
        assert_eq!(heard(&words), (2, None), "it has not said a word yet");
        words.applied(3);
        assert_eq!(heard(&words), (4, None), "what it says of one it says of both");
        words.give(5);
        words.rejected(5, "no".into());
        words.unchanged(6);
        assert_eq!(heard(&words), (4, refused(6, "no")));
    }

    #[test]
    fn what_it_began_with_can_be_refused_too() {
        let mut words = Words::beginning(7);
        words.rejected(7, "no".into());
        assert_eq!(heard(&words), (0, refused(7, "no")));
        words.applied(7);
        assert_eq!(heard(&words), (7, None));
    }

    #[test]
    fn a_late_word_about_an_older_version_is_heard_if_none_was_said_of_a_newer_one() {
        let mut words = Words::beginning(1);
        words.give(2);
        words.give(3);
        words.applied(2);
        assert_eq!(heard(&words), (2, None));
        words.give(4);
        words.rejected(3, "no".into());
        assert_eq!(heard(&words), (2, refused(3, "no")));
        words.applied(4);
        assert_eq!(heard(&words), (4, None));
    }

    #[test]
    fn another_set_of_the_same_name_begins_anew() {
        let mut words = Words::beginning(2);
        words.begin_anew();
        words.unchanged(5);
        assert_eq!(heard(&words), (5, None), "it works with the same file");
        words.begin_anew();
        words.give(6);
        assert_eq!(heard(&words), (0, None), "what it works with is of the other one");
        words.applied(6);
        words.begin_anew();
        words.unreadable(7, "x".into());
        assert_eq!(heard(&words), (0, refused(7, "x")));
    }

    #[test]
    fn numbers_that_go_back_begin_anew() {
        let mut words = Words::beginning(8);
        words.give(2);
        assert_eq!(heard(&words), (0, None), "what it works with has no number any more");
        words.applied(8);
        assert_eq!(heard(&words), (0, None));
        words.applied(2);
        assert_eq!(heard(&words), (2, None));
        words.unchanged(1);
        assert_eq!(heard(&words), (1, None), "the same file under a smaller number");
        words.unreadable(0, "x".into());
        assert_eq!(words.works_with(), 0);
    }
}
