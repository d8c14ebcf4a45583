//! Names that stand in paths and objects. Pure.

/// Longest DNS label.
const MAX_LABEL: usize = 63;
/// Longest DNS subdomain.
const MAX_SUBDOMAIN: usize = 253;
/// Longest UID. Kubernetes' own have 36 characters, and those of static pods 32.
const MAX_UID: usize = 128;

/// A label of RFC 1123, as namespaces are named.
pub(super) fn is_label(text: &str) -> bool {
    let is_end = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= MAX_LABEL
        && text.bytes().all(|c| is_end(c) || c == b'-')
        && text.bytes().next().is_some_and(is_end)
        && text.bytes().last().is_some_and(is_end)
}

/// A subdomain of RFC 1123, as pods and nodes are named.
pub(super) fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        // The parts of a subdomain may be longer than a label.
        let is_end = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.bytes().all(|c| is_end(c) || c == b'-')
            && part.bytes().next().is_some_and(is_end)
            && part.bytes().last().is_some_and(is_end)
    };
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_part)
}

/// What could be the UID of a pod.
pub(super) fn is_uid(text: &str) -> bool {
    (1..=MAX_UID).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

/// What kubelet calls this node, unless it is told otherwise: the host's name in lower case. None:
/// that is no name for a node.
pub fn node_name(host: &str) -> Option<String> {
    let name = host.trim().to_ascii_lowercase();
    is_subdomain(&name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names() {
        for good in ["a", "web-0", "0", "a--b"] {
            assert!(is_label(good) && is_subdomain(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "é", "a b", "../x", "a\n", "a?b"] {
            assert!(!is_label(bad) && !is_subdomain(bad), "{bad:?}");
        }
        for bad in [".", "a.", ".a", "a..b", &"a".repeat(254)] {
            assert!(!is_subdomain(bad), "{bad:?}");
        }
        assert!(is_subdomain("ip-10-0-0-1.eu-west-1.compute.internal"));
        assert!(!is_label("a.b"));
        assert!(is_label(&"a".repeat(63)) && !is_label(&"a".repeat(64)));
        assert!(is_uid("3f2c1a00-0000-4000-8000-000000000000"));
        assert!(!is_uid("") && !is_uid("a\"b") && !is_uid(&"a".repeat(129)));
    }

    #[test]
    fn a_node_has_the_name_that_kubelet_gives_it() {
        assert_eq!(node_name("Node-1.Example\n").as_deref(), Some("node-1.example"));
        assert_eq!(node_name(""), None);
        assert_eq!(node_name("my_host"), None);
    }
}
