//! `leaseward completion` and `leaseward man`: both made from the arguments, so that they never say something else.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};

use crate::args::{Arguments, Shell};
use crate::diagnostic::Diagnostic;
use crate::printer;

/// Prints a completion script.
pub(crate) fn completion(shell: Shell) {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // Into memory first: a reader that goes away must not end in a panic there.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "leaseward", &mut script);
    printer::bytes(&script);
}

/// Prints the page of a command, or writes the pages of all commands into a directory.
pub(crate) fn man(path: &[String], dir: Option<&Path>) -> Result<(), Diagnostic> {
    let mut root = Arguments::command();
    root.build();
    let failed = |error: std::io::Error| Diagnostic::new("LW0600", format!("cannot write a manual page: {error}"));
    if let Some(dir) = dir {
        fs::create_dir_all(dir).map_err(failed)?;
        return write_all(&root, "leaseward", dir).map_err(failed);
    }
    let mut command = &root;
    for part in path {
        command = command.find_subcommand(part).ok_or_else(|| {
            Diagnostic::new("LW0404", format!("there is no command `{part}` here")).hint("leaseward help")
        })?;
    }
    let page = page(command).map_err(failed)?;
    printer::bytes(&page);
    Ok(())
}

fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}

fn write_all(command: &Command, name: &str, dir: &Path) -> std::io::Result<()> {
    fs::write(dir.join(format!("{name}.1")), page(command)?)?;
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
        write_all(inner, &format!("{name}-{}", inner.get_name()), dir)?;
    }
    Ok(())
}
