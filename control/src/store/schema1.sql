CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    secret_sha256 BLOB NOT NULL,
    workload_group TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    max_uses INTEGER NOT NULL,
    cidrs TEXT NOT NULL,
    addresses TEXT NOT NULL,
    revoked INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE agents (
    id TEXT PRIMARY KEY,
    host_spki BLOB NOT NULL,
    namespace TEXT NOT NULL,
    service_account TEXT NOT NULL,
    workload_group TEXT NOT NULL,
    address TEXT NOT NULL,
    hostname TEXT NOT NULL,
    version TEXT NOT NULL,
    joined_at INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    recoveries INTEGER NOT NULL DEFAULT 0,
    revoked_at INTEGER,
    acked TEXT NOT NULL DEFAULT '',
    control_addresses TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE token_uses (
    token TEXT NOT NULL REFERENCES tokens(id) ON DELETE CASCADE,
    agent TEXT NOT NULL REFERENCES agents(id) ON DELETE CASCADE,
    used_at INTEGER NOT NULL,
    PRIMARY KEY (token, agent)
) STRICT;
CREATE TABLE certificates (
    serial BLOB PRIMARY KEY,
    spki_sha256 BLOB NOT NULL,
    agent TEXT NOT NULL REFERENCES agents(id) ON DELETE CASCADE,
    anchor TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    not_after INTEGER NOT NULL
) STRICT;
CREATE INDEX certificates_of_agent ON certificates(agent, issued_at);
CREATE TABLE clones (
    agent TEXT NOT NULL REFERENCES agents(id) ON DELETE CASCADE,
    address TEXT NOT NULL,
    hostname TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;
CREATE TABLE resources (
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    api_version TEXT NOT NULL,
    json TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    agent TEXT REFERENCES agents(id) ON DELETE CASCADE,
    PRIMARY KEY (kind, namespace, name)
) STRICT;
CREATE TABLE operator_tokens (
    name TEXT PRIMARY KEY,
    secret_sha256 BLOB NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE TABLE vips (
    owner TEXT PRIMARY KEY,
    slot INTEGER NOT NULL UNIQUE
) STRICT;
CREATE TABLE anchors (
    position INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    certificate TEXT NOT NULL,
    cross_signed TEXT,
    role TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
