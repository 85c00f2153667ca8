//! Where each field of a YAML document stands, so that a finding about `spec.ports[1].number` can name its line.

use mesh_proto::mesh::{Problem, SourceDocument};
use serde_saphyr::granit_parser::{Event, Parser};

use super::check::Finding;

/// Places of a document's fields.
pub(super) struct Places {
    /// Path, line, column; in the order of the document. For a mapping entry the place is that of its key.
    known: Vec<(String, usize, usize)>,
    error: Option<String>,
}

enum Open {
    Mapping { path: String, key: Option<String> },
    Sequence { path: String, next: usize },
}

impl Places {
    /// Walks the document once. A syntax error ends the walk; reading it properly then reports the error.
    pub(super) fn of(yaml: &str) -> Self {
        let mut places = Self {
            known: Vec::new(),
            error: None,
        };
        let mut open: Vec<Open> = Vec::new();
        for event in Parser::new_from_str(yaml) {
            match event {
                Ok((event, span)) => places.step(&mut open, event, (span.start.line(), span.start.col() + 1)),
                Err(error) => {
                    places.error = Some(error.to_string());
                    break;
                }
            }
        }
        places
    }

    /// Whether the document holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The syntax error that ended the walk.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// A finding with its place in the file: that of its field, or of the nearest parent that is there.
    pub(super) fn problem(&self, document: &SourceDocument, finding: &Finding) -> Problem {
        let mut path = finding.field.as_str();
        let (line, column) = loop {
            if let Some((_, line, column)) = self.known.iter().find(|(p, _, _)| p == path) {
                break (*line, *column);
            }
            match path.rfind(['.', '[']) {
                Some(cut) => path = &path[..cut],
                None => break self.known.first().map_or((1, 1), |(_, l, c)| (*l, *c)),
            }
        };
        problem(document, line, column, &finding.field, &finding.message)
    }

    /// What the reader complained about, with the field that stands there.
    pub(super) fn serde_problem(&self, document: &SourceDocument, error: &serde_saphyr::Error) -> Problem {
        let place = error.location().map_or((1, 1), |l| {
            (
                usize::try_from(l.line()).unwrap_or(1),
                usize::try_from(l.column()).unwrap_or(1),
            )
        });
        let field = self
            .known
            .iter()
            .rfind(|(_, line, column)| (*line, *column) <= place)
            .map_or("", |(path, _, _)| path.as_str());
        let text = error.without_snippet().to_string();
        let message = text.split(" at line ").next().unwrap_or(&text).trim();
        problem(document, place.0, place.1, field, message)
    }

    fn step(&mut self, open: &mut Vec<Open>, event: Event<'_>, place: (usize, usize)) {
        match event {
            Event::Scalar(text, ..) => {
                if let Some(Open::Mapping { key: key @ None, .. }) = open.last_mut() {
                    *key = Some(text.into_owned());
                    self.note_key(open, place);
                } else {
                    self.node(open, place);
                    close_value(open);
                }
            }
            Event::Alias(_) => {
                self.node(open, place);
                close_value(open);
            }
            Event::MappingStart(..) => {
                let path = self.node(open, place);
                open.push(Open::Mapping { path, key: None });
            }
            Event::SequenceStart(..) => {
                let path = self.node(open, place);
                open.push(Open::Sequence { path, next: 0 });
            }
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
                close_value(open);
            }
            _ => {}
        }
    }

    fn note_key(&mut self, open: &[Open], place: (usize, usize)) {
        if let Some(Open::Mapping { path, key: Some(key) }) = open.last() {
            self.known.push((join(path, key), place.0, place.1));
        }
    }

    /// The path of a node that begins here; list items and the root are noted, mapping values have their key's place.
    fn node(&mut self, open: &[Open], place: (usize, usize)) -> String {
        match open.last() {
            None => {
                self.known.push((String::new(), place.0, place.1));
                String::new()
            }
            Some(Open::Mapping { path, key }) => join(path, key.as_deref().unwrap_or("?")),
            Some(Open::Sequence { path, next }) => {
                let path = format!("{path}[{next}]");
                self.known.push((path.clone(), place.0, place.1));
                path
            }
        }
    }
}

fn close_value(open: &mut [Open]) {
    match open.last_mut() {
        Some(Open::Mapping { key, .. }) => *key = None,
        Some(Open::Sequence { next, .. }) => *next += 1,
        None => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn problem(document: &SourceDocument, line: usize, column: usize, field: &str, message: &str) -> Problem {
    let line = u32::try_from(line.max(1)).unwrap_or(u32::MAX);
    Problem {
        file: document.file.clone(),
        line: document.line.max(1).saturating_add(line - 1),
        column: u32::try_from(column).unwrap_or(u32::MAX),
        field: field.to_owned(),
        message: message.to_owned(),
    }
}
