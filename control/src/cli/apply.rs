//! `meshctl apply`: gathers files, directories and standard input, splits them into documents, and prints what happened.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use mesh_proto::mesh::{ApplyRequest, SourceDocument};
use serde_json::json;

use super::Failure;
use super::client::Client;
use super::output::{Output, note, say};

/// Reads all that was named.
pub(super) fn read(names: &[PathBuf]) -> Result<Vec<SourceDocument>, Failure> {
    let mut documents = Vec::new();
    for name in names {
        if name.as_os_str() == "-" {
            let mut text = String::new();
            let read = std::io::stdin().read_to_string(&mut text);
            read.map_err(|e| Failure::new(1, format!("cannot read standard input: {e}")))?;
            documents.extend(split("<stdin>", &text));
            continue;
        }
        for file in files(name)? {
            let text = fs::read_to_string(&file).map_err(|e| unreadable(&file, &e))?;
            documents.extend(split(&file.display().to_string(), &text));
        }
    }
    if documents.is_empty() {
        return Err(Failure::new(1, "nothing to apply: no document in what was named"));
    }
    Ok(documents)
}

pub(super) async fn run(
    client: &mut Client,
    documents: Vec<SourceDocument>,
    dry_run: bool,
    output: &Output,
) -> Result<(), Failure> {
    let response = client.apply(ApplyRequest { documents, dry_run }).await?.into_inner();
    for p in &response.problems {
        let field = if p.field.is_empty() {
            String::new()
        } else {
            format!("{}: ", p.field)
        };
        note(&format!("{}:{}:{}: {field}{}", p.file, p.line, p.column, p.message));
    }
    if !response.problems.is_empty() {
        let count = response.problems.len();
        return Err(Failure::new(1, format!("{count} problem(s); nothing was applied")));
    }
    for w in &response.warnings {
        note(&format!("warning: {}:{}: {}: {}", w.file, w.line, w.field, w.message));
    }
    let applied = response.applied.iter();
    let value = applied
        .map(|a| json!({ "kind": a.kind, "namespace": a.namespace, "name": a.name, "action": a.action }))
        .collect();
    if output.structured(&value)? {
        return Ok(());
    }
    let suffix = if dry_run { " (dry run)" } else { "" };
    for a in &response.applied {
        let name = named(&a.kind, &a.namespace, &a.name);
        say(&format!("{name} {}{suffix}", a.action))?;
    }
    Ok(())
}

/// `kind/name -n namespace`, without the latter for what is in none.
pub(super) fn named(kind: &str, namespace: &str, name: &str) -> String {
    let kind = kind.to_lowercase();
    match namespace {
        "" => format!("{kind}/{name}"),
        _ => format!("{kind}/{name} -n {namespace}"),
    }
}

/// A file, or the YAML files of a directory in the order of their names.
fn files(name: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !name.is_dir() {
        return Ok(vec![name.to_owned()]);
    }
    let entries = fs::read_dir(name).map_err(|e| unreadable(name, &e))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| unreadable(name, &e))?.path();
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if yaml && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(1, format!("cannot read {}: {error}", path.display()))
}

/// The documents of a file, each with the line on which it begins. A line that begins with `---` always separates, as YAML has it.
fn split(file: &str, text: &str) -> Vec<SourceDocument> {
    let mut documents = Vec::new();
    let (mut start, mut yaml) = (1u32, String::new());
    let mut push = |line: u32, yaml: &mut String| {
        let empty = yaml
            .lines()
            .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'));
        let yaml = std::mem::take(yaml);
        if !empty {
            documents.push(SourceDocument {
                file: file.to_owned(),
                line,
                yaml,
            });
        }
    };
    for (line, text) in (1u32..).zip(text.lines()) {
        if text == "---" || text.starts_with("--- ") || text == "..." {
            push(start, &mut yaml);
            start = line + 1;
        } else {
            yaml.push_str(text);
            yaml.push('\n');
        }
    }
    push(start, &mut yaml);
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_their_lines() {
        let found = split("f", "# head\n---\na: 1\n---\n# nothing\n--- # c\nb: 2\nc: 3\n");
        let lines: Vec<_> = found.iter().map(|d| (d.line, d.yaml.as_str())).collect();
        assert_eq!(lines, [(3, "a: 1\n"), (7, "b: 2\nc: 3\n")]);
    }
}
