//! `cluster.env`: lines of `KEY='value'`, quoted as for a shell.

use std::collections::BTreeMap;

/// Why a line is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Malformed {
    pub line: usize,
    pub why: &'static str,
}

/// The variables. Comments and empty lines are skipped, an `export` before the name too; a later line wins.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, Malformed> {
    let mut found = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let malformed = |why| Malformed { line: at + 1, why };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let (key, value) = line.split_once('=').ok_or_else(|| malformed("it is not KEY=VALUE"))?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if key.is_empty() || !key.chars().all(is_name) {
            return Err(malformed("the name before = is none"));
        }
        found.insert(key.to_owned(), unquote(value).map_err(malformed)?);
    }
    Ok(found)
}

/// One word of a shell: bare, '...' and "..." parts in any order. Nothing is expanded.
fn unquote(word: &str) -> Result<String, &'static str> {
    let mut plain = String::new();
    let mut rest = word.chars();
    while let Some(c) = rest.next() {
        match c {
            '\'' => loop {
                match rest.next().ok_or("a quote is not closed")? {
                    '\'' => break,
                    c => plain.push(c),
                }
            },
            '"' => loop {
                match rest.next().ok_or("a quote is not closed")? {
                    '"' => break,
                    '\\' => plain.push(rest.next().ok_or("a quote is not closed")?),
                    c => plain.push(c),
                }
            },
            '\\' => plain.push(rest.next().ok_or("it ends with a backslash")?),
            c if c.is_whitespace() => return Err("there is more than one word"),
            c => plain.push(c),
        }
    }
    Ok(plain)
}
