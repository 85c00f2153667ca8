//! Join tokens, as operators handle them.

use mesh_proto::mesh::{CreateTokenRequest, CreateTokenResponse, ListTokensResponse};
use tonic::Code;

use super::Operators;
use crate::error::Refusal;
use crate::store::TokenRow;
use crate::token;

impl Operators {
    pub(super) async fn new_token(&self, request: CreateTokenRequest) -> Result<CreateTokenResponse, Refusal> {
        let authority = self.control.authority();
        let addresses = self.control.addresses.get().cloned().unwrap_or_default();
        let (text, row) = self
            .control
            .store
            .run(move |tx| token::create(tx, &authority, &addresses, &request))
            .await?;
        tracing::info!(id = row.id, group = row.workload_group, "join token created");
        Ok(CreateTokenResponse {
            token: text,
            info: Some(token::info(&row)),
        })
    }

    pub(super) async fn all_tokens(&self) -> Result<ListTokensResponse, Refusal> {
        let rows = self.control.store.run(TokenRow::list).await?;
        Ok(ListTokensResponse {
            tokens: rows.iter().map(token::info).collect(),
        })
    }

    pub(super) async fn end_token(&self, id: String) -> Result<(), Refusal> {
        let wanted = id.clone();
        if self.control.store.run(move |tx| TokenRow::revoke(tx, &wanted)).await? {
            return Ok(());
        }
        let message = format!("there is no token {id:?}; `meshctl token list` lists them");
        Err(Refusal::new(Code::NotFound, "token-unknown", message))
    }
}
