//! New signing keys void all tokens at once, at every gateway (`decisions.md` of the project: after a restore of the state).

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::wire::{Ask, Form};
use flatbed_tests::smart::keys::Key;
use flatbed_tests::smart::site::{Client, Site};

/// `RotateSigningKeys` by hand: a message of gRPC whose first field is a nonce of 16 bytes, all of
/// which are this number: the same number rotates once.
pub async fn rotate(coordinator: &str, number: u8) -> Result<String> {
    let message = [&[0x0a, 16], &[number; 16][..]].concat();
    let frame = [&[0][..], &u32::try_from(message.len())?.to_be_bytes(), &message].concat();
    let http = reqwest::Client::builder().http2_prior_knowledge().build()?;
    let request = http.post(format!("{coordinator}/flatbed.trust.v1.Trust/RotateSigningKeys"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers").body(frame);
    let answer = request.send().await?.error_for_status()?.bytes().await?;
    // A frame, and in it the name of the key that signs now.
    let name = answer.get(7..).context("no answer: the call failed")?;
    Ok(String::from_utf8(name.to_vec())?)
}

#[tokio::test]
async fn new_signing_keys_void_all_tokens_at_both_gateways() -> Result<()> {
    let client = Client::trusted("app", Key::ec("k")?)?;
    let mut site = Site::over(&Fixture::default(), &[&client]).await?;
    let tokens = [site.token(&client, "system/*.rs").await?, site.token(&client, "system/*.rs").await?];
    let export = site.export(&Ask::new(Form::Get, "Group/g1/"), &tokens[0]).await?;
    let file = export.file()?;
    for token in &tokens {
        site.get(&file, token).await?.is(200)?;
        site.get(&file, token).await?.is(200)?;
    }
    let name = rotate(&site.coordinator.url(), 7).await?;
    ensure!(!name.is_empty(), "no name");
    let rotated = Instant::now();
    // Whoever gets a token now gets one by the new key; gateways that knew the old one learn of it with that.
    site.until("a token of the old keys is taken", async || {
        let mut taken = 0;
        for token in tokens.iter().chain(&tokens) {
            taken += usize::from(site.get(&file, token).await?.status != 401);
        }
        Ok(taken == 0)
    })
    .await?;
    eprintln!("tokens of the old keys were refused {:?} after the rotation", rotated.elapsed());
    let fresh = site.token(&client, "system/*.rs").await?;
    for _ in 0..2 {
        site.get(&file, &fresh).await?.is(200)?;
    }
    // The old ones do not come back with new processes.
    site.kill9()?;
    site.start().await?;
    for token in tokens.iter().chain(&tokens) {
        site.get(&file, token).await?.is(401)?;
    }
    site.get(&file, &fresh).await?.is(200)?;
    site.balancer.all_served()
}
