//! Makes a table of the pages of all error codes, so that `leaseward explain` needs no files.

use std::fmt::Write;
use std::path::Path;

fn main() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
    println!("cargo:rerun-if-changed={}", dir.display());
    let mut pages: Vec<_> = std::fs::read_dir(&dir)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    // Ascending codes, so that the table is the same wherever it is built.
    pages.sort();
    let mut table = String::from("/// The pages, by ascending codes.\nconst PAGES: &[(&str, &str)] = &[\n");
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let code = page.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        writeln!(table, "    ({code:?}, include_str!({:?})),", page.display().to_string()).expect("a text grows");
    }
    table.push_str("];\n");
    let out = std::env::var("OUT_DIR").expect("cargo says where");
    std::fs::write(Path::new(&out).join("pages.rs"), table).expect("the table can be written");
}
