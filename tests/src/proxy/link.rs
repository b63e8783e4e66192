//! One connection through the proxy.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, Notify, watch};

use super::http::{Piece, Requests};
use super::{Counters, Fault, Weather};
use crate::random::Random;

/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// What a client gets in place of an answer, as S3 says it.
fn unavailable() -> String {
    let body = "<Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>";
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/xml\r\ncontent-length:";
    format!("{head} {}\r\n\r\n{body}", body.len())
}

/// The link is over: a side has closed, or it was reset.
struct Over;

/// A connection's luck, and what it is exposed to.
#[derive(Clone)]
pub struct Link {
    pub luck: u64,
    pub seed: u64,
    pub weather: watch::Receiver<Weather>,
    pub counters: Arc<Counters>,
    /// Told when the client has closed.
    pub gone: Arc<Notify>,
}

impl Link {
    /// Carries bytes between a client and the server until either has closed or the link is reset.
    pub async fn run(mut self, client: TcpStream, target: u16) {
        if self.wait_out().await.is_err() {
            return reset(client);
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
            // Nobody listens there: the client sees what it would without a proxy, as nearly as can be.
            return reset(client);
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let to_client = Arc::new(Mutex::new(to_client));
        let up = self.clone().carry_up(from_client, to_server, to_client.clone());
        let down = self.clone().carry_down(from_server, to_client.clone());
        // One side that closes for writing leaves the other open: both ends are waited for.
        let both = async { tokio::join!(up, down) };
        tokio::select! {
            _ = both => {}
            () = self.until_reset() => {
                Counters::add(&self.counters.harmed);
                // The other branch is gone with its share of the client's half: what is left here is all of it.
                if let Some(half) = Arc::into_inner(to_client).map(Mutex::into_inner) {
                    let _ = half.as_ref().set_zero_linger();
                    // Dropped without a farewell.
                    half.forget();
                }
            }
        }
    }

    fn fault(&mut self) -> Option<Fault> {
        self.weather.borrow_and_update().on(self.luck)
    }

    /// Returns when a reset is in force for this link.
    async fn until_reset(&mut self) {
        while self.fault() != Some(Fault::Reset) {
            if self.weather.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits while nothing may go on.
    async fn wait_out(&mut self) -> Result<(), Over> {
        loop {
            match self.fault() {
                Some(Fault::BlackHole) => {
                    Counters::add(&self.counters.harmed);
                    self.weather.changed().await.map_err(|_| Over)?;
                }
                Some(Fault::Reset) => {
                    Counters::add(&self.counters.harmed);
                    return Err(Over);
                }
                _ => return Ok(()),
            }
        }
    }

    /// What a piece of this size suffers on its way.
    async fn delay(&mut self, bytes: usize) -> Result<(), Over> {
        self.wait_out().await?;
        let pause = match self.fault() {
            Some(Fault::Delay(pause)) => pause,
            Some(Fault::Bandwidth(rate)) => Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64),
            _ => return Ok(()),
        };
        Counters::add(&self.counters.harmed);
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn carry_up(
        mut self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        back: Arc<Mutex<OwnedWriteHalf>>,
    ) -> Result<(), Over> {
        let mut buffer = vec![0; PIECE];
        let mut requests = Requests::default();
        let mut random = Random::new(self.seed);
        let mut refusing = false;
        loop {
            let got = from.read(&mut buffer).await.unwrap_or(0);
            if got == 0 {
                self.gone.notify_one();
                return to.shutdown().await.map_err(|_| Over);
            }
            self.delay(got).await?;
            requests.push(&buffer[..got]);
            // Requests are followed even in good weather: the next change may come in the middle of one.
            while let Some(piece) = requests.next_piece() {
                let (bytes, is_last) = match piece {
                    Piece::Head(bytes, is_last) => {
                        refusing = self.refuses(&mut random);
                        (bytes, is_last)
                    }
                    Piece::Body(bytes, is_last) => (bytes, is_last),
                    Piece::Opaque(bytes) => (bytes, false),
                };
                if !refusing {
                    to.write_all(&bytes).await.map_err(|_| Over)?;
                } else if is_last {
                    Counters::add(&self.counters.harmed);
                    back.lock().await.write_all(unavailable().as_bytes()).await.map_err(|_| Over)?;
                }
            }
        }
    }

    /// Draws whether a request is refused.
    fn refuses(&mut self, random: &mut Random) -> bool {
        matches!(self.fault(), Some(Fault::Unavailable { percent }) if random.below(100) < percent)
    }

    async fn carry_down(
        mut self,
        mut from: OwnedReadHalf,
        to: Arc<Mutex<OwnedWriteHalf>>,
    ) -> Result<(), Over> {
        let mut buffer = vec![0; PIECE];
        // For good: what follows a swallowed piece would be no answer to anything.
        let mut swallowing = false;
        loop {
            let got = from.read(&mut buffer).await.map_err(|_| Over)?;
            swallowing |= self.fault() == Some(Fault::SwallowAnswers);
            if swallowing {
                Counters::add(&self.counters.harmed);
                if got == 0 {
                    // The client is left waiting, as when a cable is cut: it finds out by its own clock.
                    self.gone.notified().await;
                    return Err(Over);
                }
                continue;
            }
            if got == 0 {
                return to.lock().await.shutdown().await.map_err(|_| Over);
            }
            self.delay(got).await?;
            to.lock().await.write_all(&buffer[..got]).await.map_err(|_| Over)?;
        }
    }
}

/// Closes a connection the hard way.
fn reset(client: TcpStream) {
    // Fails only on a socket that is closed already.
    let _ = client.set_zero_linger();
}
