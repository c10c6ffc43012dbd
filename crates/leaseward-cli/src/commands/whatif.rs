//! `leaseward whatif`, and what a dry run says: what would become of servers.

use leaseward_http::model::Prediction;

use crate::diagnostic::Diagnostic;
use crate::printer::{self, Output, column, field, line};
use crate::route::Route;
use crate::session::Session;

pub(crate) async fn run(session: &Session, event: &[String]) -> Result<(), Diagnostic> {
    let words: Vec<_> = event.iter().map(String::as_str).collect();
    let ["machine", machines, "down"] = words[..] else {
        return Err(Diagnostic::new("LW0104", format!("`{}` is not an event", words.join(" ")))
            .hint("leaseward whatif machine m1 down"));
    };
    session
        .show(|| async {
            let prediction: Prediction = session.api.get(Route::from("/v1/whatif").with("down", machines)).await?;
            show(&session.output, &prediction)
        })
        .await
}

/// Shows what would come of something.
pub(crate) fn show(output: &Output, prediction: &Prediction) -> Result<(), Diagnostic> {
    match output {
        Output::Table | Output::Wide => {
            text(prediction).iter().for_each(|text| line(text));
            Ok(())
        }
        _ => printer::object(output, prediction, &[column("WOULD", |of| field(of, "sentence"))]),
    }
}

/// Returns a prediction as people read it.
pub(crate) fn text(prediction: &Prediction) -> Vec<String> {
    let mut lines = vec![prediction.sentence.clone()];
    lines.extend(prediction.servers.iter().map(|server| format!("  {}", server.sentence)));
    lines
}
