//! One assertion, sent by thousands at once to both gateways, makes one token (AU-61).

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::wire::{Answer, escaped};
use flatbed_tests::smart::keys::Key;
use flatbed_tests::smart::site::{Client, Site, token_form};
use futures::StreamExt;

/// How often it is sent.
const REPLAYS: usize = 10_000;
/// Requests in flight, half of them at each gateway.
const AT_ONCE: usize = 512;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_replays_make_one_token() -> Result<()> {
    let client = Client::trusted("app", Key::ec("k")?)?;
    let mut site = Site::over(&Fixture::default(), &[&client]).await?;
    let assertion = site.assertion(&client, |_, _| {})?;
    let fields = token_form(&assertion, "system/*.rs");
    let form: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    let form = form.join("&");
    // Straight to the gateways, on connections that stay: nothing is to stand between the requests.
    let http = reqwest::Client::new();
    let urls: Vec<String> =
        site.gateways.iter().map(|gateway| format!("{}/auth/token", gateway.url())).collect();
    let send = |number: usize| {
        let request = http.post(&urls[number % urls.len()]);
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(form.clone());
        async move { (number, Answer::to(request).await) }
    };
    let started = Instant::now();
    let answers: Vec<_> =
        futures::stream::iter((0..REPLAYS).map(send)).buffer_unordered(AT_ONCE).collect().await;
    let took = started.elapsed();
    let mut told: BTreeMap<(usize, u16, String), usize> = BTreeMap::new();
    for (number, answer) in answers {
        let answer = answer?;
        let error = answer.json()?["error"].as_str().unwrap_or_default().to_owned();
        *told.entry((number % urls.len(), answer.status, error)).or_default() += 1;
    }
    eprintln!("{REPLAYS} replays, {AT_ONCE} at once, in {took:?}: {told:?}");
    let of =
        |status: u16| told.iter().filter(|((_, each, _), _)| *each == status).map(|(_, count)| count).sum();
    let (tokens, refused): (usize, usize) = (of(200), of(401));
    let refusals_name_it = told.keys().all(|(_, status, error)| *status != 401 || error == "invalid_client");
    ensure!(tokens == 1 && refused == REPLAYS - 1 && refusals_name_it, "{told:?}");

    // Nor later, by way of the balancer, and after all processes were killed.
    site.kill9()?;
    site.start().await?;
    for _ in 0..4 {
        site.request_token(&assertion, "system/*.rs").await?.is(401)?;
    }
    site.request_token(&site.assertion(&client, |_, _| {})?, "system/*.rs").await?.is(200)?;
    site.balancer.all_served()
}
