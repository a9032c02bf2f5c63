//! Profiles hidden, shown and linked to a wallet by an operator.

use diesel::sql_types::{BigInt, Nullable, Text};
use futures_util::FutureExt;
use muster_domain::{Profile, ProfileId, Wallet};

use crate::community::Community;
use crate::error::{Error, Missing};
use crate::read::profile::profile_held;
use crate::sql::statement::{self, Statement};
use crate::write::change::MemberChange;
use crate::write::{lock, member};

impl Community {
    /// Takes a profile out of every list and rank, and answers it. Hiding a hidden profile changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn profile_hide(&self, id: ProfileId) -> Result<Profile, Error> {
        self.profile_set_hidden(id, true).await
    }

    /// Puts a hidden profile back, and answers it. One that has left stays out of the lists until it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn profile_show(&self, id: ProfileId) -> Result<Profile, Error> {
        self.profile_set_hidden(id, false).await
    }

    async fn profile_set_hidden(&self, id: ProfileId, hidden: bool) -> Result<Profile, Error> {
        let tenant = self.tenant;
        let change = MemberChange { hidden: Some(hidden), ..self.change() };
        self.write("profile_set_hidden", move |connection| {
            async move {
                let locked = lock::member(connection, tenant, id).await?;
                let (number, held) = locked.ok_or(Error::NotFound(Missing::Profile))?;
                member::change_known(connection, &held, tenant, vec![(number, change)]).await?;
                profile_held(connection, tenant, id).await
            }
            .boxed()
        })
        .await
    }

    /// Links a wallet to a profile, or with `None` unlinks what is linked.
    ///
    /// # Errors
    /// [`Error::WalletTaken`] when another profile of this community has it, [`Error::NotFound`] without a
    /// profile.
    pub async fn profile_link_wallet(&self, id: ProfileId, wallet: Option<Wallet>) -> Result<Profile, Error> {
        let tenant = self.tenant;
        self.write("profile_link_wallet", move |connection| {
            async move {
                let locked = lock::member(connection, tenant, id).await?;
                let (number, _held) = locked.ok_or(Error::NotFound(Missing::Profile))?;
                // Of two who link one wallet, the second sees that it is taken.
                lock::community(connection, tenant).await?;
                let update = Statement::in_community(
                    tenant,
                    "UPDATE members SET wallet = $4
                         WHERE shard = $1 AND community = $2 AND member = $3 AND erased_at IS NULL
                             AND NOT EXISTS (SELECT FROM members AS other
                                 WHERE other.shard = $1 AND other.community = $2 AND other.wallet = $4
                                     AND other.member <> $3)",
                )
                .bind::<BigInt, _>(number)
                .bind::<Nullable<Text>, _>(wallet.map(String::from));
                let linked = statement::execute(connection, update).await? > 0;
                let profile = profile_held(connection, tenant, id).await?;
                if linked { Ok(profile) } else { Err(Error::WalletTaken) }
            }
            .boxed()
        })
        .await
    }
}
