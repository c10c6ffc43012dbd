//! What went wrong, the way every command says it: code, what, why, what to do.

use std::fmt;

/// An error with a stable code and a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    /// The stable code of its page.
    pub(crate) code: String,
    what: String,
    why: Option<String>,
    hints: Vec<String>,
    exit: u8,
}

impl Diagnostic {
    /// Returns an error with this code.
    pub(crate) fn new(code: impl Into<String>, what: impl Into<String>) -> Self {
        let code = code.into();
        let exit = exit_code(&code);
        Self { code, what: what.into(), why: None, hints: Vec::new(), exit }
    }

    /// Adds the facts behind it.
    pub(crate) fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Sets the exit code.
    pub(crate) fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// Returns what happened, without code and hints.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Returns the exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        self.exit
    }
}

/// Returns what to do about a code where nobody knows more: what is found on this machine says no more than what is so.
fn usual_hint(code: &str) -> Option<&'static str> {
    Some(match code {
        "LW0604" => "look at the path, whose it is, and at its disk",
        "LW0701" => "see whether it is a node, and of which release: leaseward version --check",
        "LW0804" => "change or take away what is named, then try again",
        "LW0807" => "try again when nobody writes there",
        _ => return None,
    })
}

/// Returns the exit code that goes with an error code.
fn exit_code(code: &str) -> u8 {
    match code {
        "LW0404" => 3,
        "LW0401" | "LW0403" => 4,
        "LW0202" | "LW0203" | "LW0205" | "LW0206" | "LW0409" | "LW0412" | "LW0413" => 5,
        "LW0501" | "LW0503" | "LW0505" => 6,
        "LW0502" | "LW0504" => 7,
        "LW0100" | "LW0101" | "LW0102" | "LW0103" | "LW0104" | "LW0107" => 2,
        _ => 1,
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error {}: {}", self.code, self.what)?;
        if let Some(why) = &self.why {
            write!(f, "\n  why   {why}")?;
        }
        for hint in
            self.hints.iter().map(String::as_str).chain(usual_hint(&self.code).filter(|_| self.hints.is_empty()))
        {
            write!(f, "\n  do    {hint}")?;
        }
        write!(f, "\n  more  leaseward explain {}", self.code)
    }
}

impl std::error::Error for Diagnostic {}

impl From<leaseward::Error> for Diagnostic {
    fn from(error: leaseward::Error) -> Self {
        let code = error.code().to_owned();
        let text = error.to_string();
        Self::new(&code, text.strip_prefix(&format!("{code}: ")).unwrap_or(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nobody_knows_more_it_is_said_what_is_usually_done() {
        let bare = Diagnostic::new("LW0807", "a changed").to_string();
        assert_eq!(
            bare,
            "error LW0807: a changed\n  do    try again when nobody writes there\n  more  leaseward explain LW0807"
        );
        let said = Diagnostic::new("LW0807", "a changed").hint("stop the writer").to_string();
        assert!(said.contains("do    stop the writer") && !said.contains("try again"), "{said}");
        for code in ["LW0604", "LW0701", "LW0804"] {
            assert!(Diagnostic::new(code, "x").to_string().contains("\n  do    "), "{code}");
        }
    }
}
