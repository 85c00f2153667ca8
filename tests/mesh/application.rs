//! The application of a waypoint whose HBONE is taken by an agent or a ztunnel: it is told by a PROXY protocol header for whom a
//! connection is, and sends it on.

use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use mesh_lab::Host;

use crate::tools::{Server, Tools as _};

/// Takes what an inbound binding `PROXY/15088` hands over.
pub struct Application {
    asked: Arc<Mutex<Vec<(SocketAddr, String)>>>,
    _server: Server,
}

impl Application {
    /// Sends each connection on to where `onward` says, given where it was meant for.
    pub fn start(host: &Host, onward: impl Fn(SocketAddr) -> SocketAddr + Clone + Send + 'static) -> Self {
        let asked = Arc::<Mutex<Vec<_>>>::default();
        let noted = asked.clone();
        let server = host.tcp_server("127.0.0.1:15088", move |mut stream| {
            let (to, who) = read_header(&mut stream);
            noted.lock().unwrap().push((to, who));
            // Refused there is refused here: the caller sees its connection end.
            if let Ok(there) = TcpStream::connect(onward(to)) {
                splice(stream, there);
            }
        });
        Self { asked, _server: server }
    }

    /// Where each connection was meant for, and the caller's SPIFFE ID.
    pub fn asked(&self) -> Vec<(SocketAddr, String)> {
        self.asked.lock().unwrap().clone()
    }
}

/// A PROXY header, version 2, TCP over IPv4, with the identity first of its TLVs.
fn read_header(from: &mut TcpStream) -> (SocketAddr, String) {
    let mut head = [0; 16];
    from.read_exact(&mut head).unwrap();
    assert_eq!(&head[..14], b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    from.read_exact(&mut body).unwrap();
    let address: [u8; 4] = body[4..8].try_into().unwrap();
    let to = SocketAddr::from((Ipv4Addr::from(address), u16::from_be_bytes([body[10], body[11]])));
    assert_eq!(body[12], 0xd0, "{body:?}");
    let length = usize::from(u16::from_be_bytes([body[13], body[14]]));
    (to, String::from_utf8(body[15..15 + length].to_vec()).unwrap())
}

fn splice(mut here: TcpStream, mut there: TcpStream) {
    let (mut back, mut answers) = (here.try_clone().unwrap(), there.try_clone().unwrap());
    let answering = std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut here, &mut there);
    let _ = there.shutdown(Shutdown::Write);
    let _ = answering.join();
}
