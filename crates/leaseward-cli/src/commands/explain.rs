//! `leaseward explain LWxxxx`: the page of an error code, without a network.

use crate::diagnostic::Diagnostic;
use crate::printer::line;

include!(concat!(env!("OUT_DIR"), "/pages.rs"));

pub(crate) fn run(what: &str) -> Result<(), Diagnostic> {
    let code = what.to_uppercase();
    match PAGES.iter().find(|(known, _)| *known == code) {
        Some((_, page)) => {
            line(page.trim_end());
            Ok(())
        }
        None => Err(Diagnostic::new("LW0404", format!("there is no page for {what}"))
            .hint("codes look like LW0412; each error shows its own")),
    }
}
