//! Which hostnames a query may mean, in the order in which they are tried (istio-wire section 4.1).

use super::View;

/// A name to look up, and whether the answer needs a CNAME because a search domain was taken off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) hostname: String,
    pub(super) stripped: bool,
}

/// All candidates for a name in lower case without its last dot.
pub(super) fn candidates(name: &str, view: &View<'_>) -> Vec<Candidate> {
    let mut found = Vec::new();
    expand(name, view, false, &mut found);
    for domain in view.search.iter().take(MAX_SEARCH) {
        let stripped = name
            .strip_suffix(domain.as_str())
            .and_then(|rest| rest.strip_suffix('.'));
        if let Some(rest) = stripped.filter(|rest| !rest.is_empty()) {
            expand(rest, view, true, &mut found);
        }
    }
    found
}

fn expand(name: &str, view: &View<'_>, stripped: bool, found: &mut Vec<Candidate>) {
    let mut add = |hostname: String| {
        if !found.iter().any(|one| one.hostname == hostname) {
            found.push(Candidate { hostname, stripped });
        }
    };
    add(name.to_owned());
    let labels: Vec<_> = name.split('.').collect();
    let (cluster, mesh, namespace) = (view.cluster_domain, view.mesh_domain, view.namespace);
    match labels.as_slice() {
        [service] => {
            add(format!("{service}.{namespace}.svc.{cluster}"));
            add(format!("{service}.{namespace}.{mesh}"));
        }
        [service, of] => {
            add(format!("{service}.{of}.svc.{cluster}"));
            add(format!("{service}.{of}.{mesh}"));
        }
        [_, _, "svc"] => add(format!("{name}.{cluster}")),
        [_, _, "svc", ..] if !name.ends_with(cluster) => add(format!("{name}.{cluster}")),
        _ => {}
    }
    // Wildcards, from most to least specific.
    for (at, _) in name.match_indices('.').take(MAX_LABELS) {
        add(format!("*{}", &name[at..]));
    }
}

/// Whether a name belongs to the mesh, whoever may have it: nobody outside is to be asked.
pub(super) fn is_ours(name: &str, view: &View<'_>) -> bool {
    let below = |domain: &str| name == domain || name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    below(view.mesh_domain)
}

const MAX_SEARCH: usize = 32;
const MAX_LABELS: usize = 8;
