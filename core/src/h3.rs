//! HTTP/3 as a mesh tunnel needs it (RFC 9114, RFC 9204 with the dynamic table off): frames, QPACK, the CONNECT head.
//!
//! Pure: bytes in, values out. The IO around it is in the agent's `tunnel`.
