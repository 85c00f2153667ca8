//! Which endpoint of a service gets a connection (istio-wire section 3.1).
