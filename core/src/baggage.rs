//! Who a caller says that it is: the `baggage` header of a CONNECT (W3C Baggage, with the keys that Istio uses).
//!
//! For telemetry alone, and only of a caller that our own world does not know: nothing is decided by it. Every value is the
//! caller's own word, so it is bounded, and what no name can be is left out.

/// What the header says; empty where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage<'a> {
    pub cluster: &'a str,
    pub namespace: &'a str,
    /// The Deployment, CronJob, Pod or Job.
    pub workload: &'a str,
    pub canonical_service: &'a str,
    pub canonical_revision: &'a str,
    pub region: &'a str,
    pub zone: &'a str,
}

/// Most members that are read (W3C Baggage asks for 64 at least).
const MAX_MEMBERS: usize = 64;
/// Longest value that is kept, in bytes: that of a Kubernetes name.
const MAX_VALUE: usize = 253;

impl<'a> Baggage<'a> {
    /// Reads a header; several are to be joined by commas first. Of a key that comes twice the last value counts. Istio does
    /// not percent-encode, so nothing is decoded.
    pub fn parse(header: &'a str) -> Self {
        let mut baggage = Self::default();
        for member in header.split(',').take(MAX_MEMBERS) {
            let Some((key, value)) = member.split_once('=') else {
                continue;
            };
            let value = value.split(';').next().unwrap_or_default().trim();
            if value.len() > MAX_VALUE || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                continue;
            }
            match key.trim() {
                "k8s.cluster.name" => baggage.cluster = value,
                "k8s.namespace.name" => baggage.namespace = value,
                "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.pod.name" | "k8s.job.name" => {
                    baggage.workload = value;
                }
                "service.name" => baggage.canonical_service = value,
                "service.version" => baggage.canonical_revision = value,
                "cloud.region" => baggage.region = value,
                "cloud.availability_zone" => baggage.zone = value,
                _ => {}
            }
        }
        baggage
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_istio_writes_is_read() {
        let header = "k8s.cluster.name=K1,k8s.namespace.name=shop,k8s.deployment.name=web-v1,service.name=web,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
        let expected = Baggage {
            cluster: "K1",
            namespace: "shop",
            workload: "web-v1",
            canonical_service: "web",
            canonical_revision: "v1",
            region: "r1",
            zone: "z1",
        };
        assert_eq!(Baggage::parse(header), expected);
        for kind in ["cronjob", "pod", "job"] {
            assert_eq!(Baggage::parse(&format!("k8s.{kind}.name=x")).workload, "x");
        }
    }

    #[test]
    fn spaces_properties_and_repetition_are_as_in_the_standard() {
        let baggage = Baggage::parse(" service.name = web ; note=1;x , other=1,service.name=api\t, cloud.region=a=b");
        assert_eq!((baggage.canonical_service, baggage.region), ("api", "a=b"));
    }

    #[test]
    fn what_no_name_can_be_is_left_out() {
        let long = format!("service.name={}", "a".repeat(254));
        let late = "x=1,".repeat(64) + "service.name=web";
        for header in [
            "",
            ",,=,;",
            "service.name",
            "service.name=a b",
            "service.name=\u{1}",
            "service.name=é",
            &long,
            &late,
        ] {
            assert_eq!(Baggage::parse(header), Baggage::default(), "{header}");
        }
        assert_eq!(Baggage::parse("service.name=web,service.name=").canonical_service, "");
    }

    proptest! {
        #[test]
        fn values_are_bounded_whatever_comes(header in "([a-z8.]{0,8}|service.name|=|,|;|.){0,60}") {
            let baggage = Baggage::parse(&header);
            prop_assert!(baggage.canonical_service.len() <= MAX_VALUE);
            prop_assert!(!baggage.canonical_service.contains([',', ';', ' ', '\n']));
        }
    }
}
