//! No test file is forgotten: each one beside this is part of the one test binary.

#[test]
fn every_file_is_a_module() {
    let main = include_str!("main.rs");
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/it");
    for entry in std::fs::read_dir(dir).expect("readable") {
        let name = entry.expect("readable").file_name().to_string_lossy().into_owned();
        let module = name.trim_end_matches(".rs");
        assert!(module == "main" || main.contains(&format!("mod {module};")), "{name} is not in main.rs");
    }
}
