//! `leaseward explain`: the page of an error code, without a network; or why something is as it is.

use leaseward_http::model::Explanation;

use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field, line};
use crate::route::Route;
use crate::session::Session;

include!(concat!(env!("OUT_DIR"), "/pages.rs"));

pub(crate) fn page(what: &str) -> Result<(), Diagnostic> {
    let code = what.to_uppercase();
    match PAGES.iter().find(|(known, _)| *known == code) {
        Some((_, page)) => {
            line(page.trim_end());
            Ok(())
        }
        None => Err(Diagnostic::new("LW0404", format!("there is no page for {what}"))
            .hint("codes look like LW0412; each error shows its own")
            .hint("objects look like server/pay-1, lease/batch/nightly, node/n1 or config/app")),
    }
}

pub(crate) async fn object(session: &Session, what: &str) -> Result<(), Diagnostic> {
    let route = Route::explanation(what)?;
    session
        .show(|| async {
            let explained: Explanation = session.api.get(&route).await?;
            match session.output {
                Output::Table | Output::Wide => {
                    text(&explained, session.output == Output::Wide).iter().for_each(|text| line(text));
                    Ok(())
                }
                _ => printer::object(&session.output, &explained, &[column("IS", |of| field(of, "sentence"))]),
            }
        })
        .await
}

/// Returns an explanation as people read it; with its events if `wide`.
fn text(explained: &Explanation, wide: bool) -> Vec<String> {
    let mut lines = vec![explained.sentence.clone()];
    let longest = explained.facts.iter().map(|fact| fact.subject.chars().count()).max().unwrap_or(0).max(7);
    for (i, why) in explained.because.iter().enumerate() {
        lines.push(format!("  {:<longest$}  {why}", if i == 0 { "because" } else { "" }));
    }
    let mut before = "";
    for fact in &explained.facts {
        let subject = if fact.subject == before { "" } else { fact.subject.as_str() };
        lines.push(format!("  {subject:<longest$}  {}", fact.text));
        before = &fact.subject;
    }
    if wide && !explained.events.is_empty() {
        lines.push("Lately".into());
        lines.extend(explained.events.iter().map(|event| format!("  {}  {}", event.at, event.text)));
    }
    if !explained.hints.is_empty() {
        lines.push("Do".into());
        let longest = explained.hints.iter().map(|hint| hint.command.chars().count()).max().unwrap_or(0);
        lines.extend(explained.hints.iter().map(|hint| format!("  {:<longest$}   {}", hint.command, hint.why)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use leaseward_http::model::{Fact, Hint, Wide};

    use super::*;

    #[test]
    fn an_explanation_reads_as_a_person_would_say_it() {
        let fact = |subject: &str, text: &str| Fact { subject: subject.into(), text: text.into() };
        let explained = Explanation {
            name: "server/report".into(),
            revision: Wide(7),
            sentence: "report is FAILED and will not be tried again until you act.".into(),
            because: vec!["it failed 6 times; last on m4: exit 1".into(), "it is so".into()],
            facts: vec![
                fact("m4", "failed: exit 1"),
                fact("m4", "failed: exit 2"),
                fact("machine-10", "could take it"),
            ],
            hints: vec![
                Hint { command: "leaseward server start report".into(), why: "try again".into() },
                Hint { command: "leaseward events --for server/report".into(), why: "see what happened".into() },
            ],
            events: Vec::new(),
        };
        expect![[r#"
            report is FAILED and will not be tried again until you act.
              because     it failed 6 times; last on m4: exit 1
                          it is so
              m4          failed: exit 1
                          failed: exit 2
              machine-10  could take it
            Do
              leaseward server start report          try again
              leaseward events --for server/report   see what happened
        "#]]
        .assert_eq(&(text(&explained, false).join("\n") + "\n"));
    }
}
