//! Names: of the mesh by us, of the world by the machine's own resolver.

use crate::fixture::Mesh;

#[test]
fn mesh_names_are_answered_and_others_are_forwarded() {
    let mut mesh = Mesh::start();
    let upstream = mesh.machine("dns");
    let _server = upstream.host.dns_server(&format!("{}:53", upstream.ip4), "www.public.example", "192.0.2.7");
    let mut web = mesh.machine("web");
    web.configure(&format!("[dns]\nupstreams = [\"{}:53\"]", upstream.ip4));
    web.host.write_resolv_conf("nameserver 100.64.100.53\nsearch shop.mesh.internal\n");
    web.join(&mesh.token("shop/web"));
    web.start();
    web.wait_ready();

    let vip = web.host.resolve("orders.shop.mesh.internal");
    assert!(vip.starts_with("240.240."), "{vip}");
    assert_eq!(web.host.resolve("ORDERS.example.COM"), vip);
    assert_eq!(web.host.resolve("orders"), vip, "by the search list");
    assert_eq!(web.host.resolve("www.public.example"), "192.0.2.7");
    let six = web.host.sh("getent ahostsv6 orders.shop.mesh.internal");
    assert!(six.contains("2001:2:"), "{six}");
    // Over TCP, too.
    assert_eq!(web.host.resolve_tcp("orders.shop.mesh.internal", "100.64.100.53:53"), vip);
    assert_eq!(web.host.resolve_tcp("www.public.example", "100.64.100.53:53"), "192.0.2.7");
}

#[test]
fn public_names_work_while_the_world_is_not_there() {
    let mut mesh = Mesh::start();
    let upstream = mesh.machine("dns");
    let _server = upstream.host.dns_server(&format!("{}:53", upstream.ip4), "www.public.example", "192.0.2.7");
    let mut web = mesh.machine("web");
    web.configure(&format!("[dns]\nupstreams = [\"{}:53\"]", upstream.ip4));
    web.join(&mesh.token("shop/web"));
    mesh.kill_control();
    web.start();
    crate::lab::wait_for(crate::fixture::SOON, "the agent to run", || web.status()["state"] == "member");
    assert_eq!(web.host.resolve("www.public.example"), "192.0.2.7");
}
