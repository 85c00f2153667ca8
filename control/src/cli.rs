//! `meshctl`: parses the command line, makes one or two calls, prints. Exit codes: 0 done, 1 failed, 2 wrong usage,
//! 3 not found, 4 the control plane cannot be reached.

mod apply;
mod arguments;
mod client;
pub mod daemon;
mod output;
mod pack;
mod print;

use std::fmt;
use std::process::ExitCode;

use clap::Parser;
use mesh_proto::mesh::{
    CaRotateRequest, CaStatusRequest, CreateOperatorTokenRequest, CreateTokenRequest, DeleteRequest, GetRequest,
    ListAgentsRequest, ListTokensRequest, RevokeAgentRequest, RevokeTokenRequest,
};
use tonic::{Code, Status};

use arguments::{Arguments, CaCommand, Command, OperatorCommand, TokenCommand};
use client::Client;
use output::{Output, say};

/// Why a command failed, with its exit code.
#[derive(Debug)]
struct Failure {
    exit: u8,
    message: String,
}

impl Failure {
    fn new(exit: u8, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let exit = match status.code() {
            Code::NotFound => 3,
            Code::Unavailable => 4,
            _ => 1,
        };
        Self::new(exit, status.message())
    }
}

/// Runs `meshctl`.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.output);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments, &output)),
        Err(error) => Err(Failure::new(1, format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::error(&failure.message);
            ExitCode::from(failure.exit)
        }
    }
}

async fn run(arguments: Arguments, output: &Output) -> Result<(), Failure> {
    let connect = || client::connect(&arguments.server, arguments.operator_token.as_deref());
    match arguments.command {
        Command::Apply(command) => {
            let documents = apply::read(&command.filename)?;
            apply::run(&mut connect().await?, documents, command.dry_run, output).await
        }
        Command::Token { command } => token(connect(), command, output).await,
        Command::Get { kind, name, namespace } => {
            let request = GetRequest {
                kind: if kind.eq_ignore_ascii_case("all") {
                    String::new()
                } else {
                    kind.clone()
                },
                namespace: namespace.unwrap_or_default(),
                name: name.clone().unwrap_or_default(),
            };
            let found = connect().await?.get(request).await?.into_inner().resources;
            if let (Some(name), true) = (&name, found.is_empty()) {
                return Err(Failure::new(
                    3,
                    format!("there is no {kind} {name:?}; `meshctl get {kind}` lists them"),
                ));
            }
            print::resources(&found, name.is_some(), output)
        }
        Command::Delete { kind, name, namespace } => {
            let request = DeleteRequest {
                kind: kind.clone(),
                namespace,
                name: name.clone(),
            };
            connect().await?.delete(request).await?;
            say(&format!("{kind}/{name} deleted"))
        }
        Command::Agents => print::agents(
            &connect()
                .await?
                .list_agents(ListAgentsRequest {})
                .await?
                .into_inner()
                .agents,
            output,
        ),
        Command::Revoke { agent } => {
            let request = RevokeAgentRequest { agent: agent.clone() };
            let revoked = connect().await?.revoke_agent(request).await?.into_inner();
            say(&format!(
                "agent {agent} revoked, with {} live certificate(s)",
                revoked.certificates
            ))
        }
        Command::Ca { command } => {
            let mut client = connect().await?;
            let status = match command {
                CaCommand::Root => {
                    let status = client.ca_status(CaStatusRequest {}).await?.into_inner();
                    let anchors: String = status.anchors.iter().map(|a| a.certificate.as_str()).collect();
                    return say(anchors.trim_end());
                }
                CaCommand::Status => client.ca_status(CaStatusRequest {}).await?,
                CaCommand::Rotate { force } => client.ca_rotate(CaRotateRequest { force }).await?,
            };
            print::ca(&status.into_inner(), output)
        }
        Command::Operator { command } => {
            let OperatorCommand::Create { name, lifetime } = command;
            let request = CreateOperatorTokenRequest {
                name,
                lifetime_seconds: lifetime,
            };
            let made = connect().await?.create_operator_token(request).await?.into_inner();
            output::note("use it with: MESHCTL_OPERATOR_TOKEN=... meshctl ...; it is shown only once");
            say(&made.token)
        }
    }
}

/// Not every one of them needs the control plane.
async fn token(
    client: impl Future<Output = Result<Client, Failure>>,
    command: TokenCommand,
    output: &Output,
) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(create) => {
            let request = CreateTokenRequest {
                workload_group: create.group,
                lifetime_seconds: create.lifetime,
                max_uses: create.uses,
                cidrs: create.cidr,
                addresses: create.address,
            };
            print::token(&client.await?.create_token(request).await?.into_inner(), output)
        }
        TokenCommand::Pack(command) => pack::run(&command),
        TokenCommand::List => print::tokens(
            &client
                .await?
                .list_tokens(ListTokensRequest {})
                .await?
                .into_inner()
                .tokens,
            output,
        ),
        TokenCommand::Revoke { id } => {
            client
                .await?
                .revoke_token(RevokeTokenRequest { id: id.clone() })
                .await?;
            say(&format!("token {id} revoked"))
        }
    }
}
