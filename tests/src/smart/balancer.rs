//! One address before several gateways, which are given the requests in turn: whatever a client keeps using, the next request
//! is another gateway's.
//!
//! A connection to a gateway carries one request: the balancer asks for its end, so that a client that keeps connections
//! meets another gateway each time as well. A gateway that is down is passed over.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::ports::free_port;

/// Bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;

/// The address; closed when dropped.
pub struct Balancer {
    /// Its port.
    pub port: u16,
    ways: Arc<Ways>,
    task: JoinHandle<()>,
}

struct Ways {
    ports: Vec<u16>,
    turn: AtomicUsize,
    served: Vec<AtomicUsize>,
}

impl Balancer {
    /// Before the gateways at these ports of the loopback address, which need not listen yet.
    pub async fn start(ports: &[u16]) -> Result<Balancer> {
        let port = free_port()?;
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let served = ports.iter().map(|_| AtomicUsize::new(0)).collect();
        let ways = Arc::new(Ways { ports: ports.to_vec(), turn: AtomicUsize::new(0), served });
        let shared = Arc::clone(&ways);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let ways = Arc::clone(&shared);
                // A client that goes away, or a gateway: the other side sees the end of the connection.
                tokio::spawn(async move { ways.carry(client).await });
            }
        });
        Ok(Balancer { port, ways, task })
    }

    /// Requests that each gateway was given.
    pub fn served(&self) -> Vec<usize> {
        self.ways.served.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Fails unless every gateway was given requests.
    pub fn all_served(&self) -> Result<()> {
        ensure!(self.served().iter().all(|count| *count > 0), "a gateway had no part: {:?}", self.served());
        Ok(())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ways {
    async fn carry(&self, mut client: TcpStream) -> io::Result<()> {
        let request = read_head(&mut client).await?;
        let mut gateway = self.next().await?;
        let _ = (client.set_nodelay(true), gateway.set_nodelay(true));
        gateway.write_all(&closing(&request).unwrap_or(request)).await?;
        tokio::io::copy_bidirectional(&mut client, &mut gateway).await.map(|_| ())
    }

    /// The next gateway that takes a connection.
    async fn next(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for _ in 0..self.ports.len() {
            let number = self.turn.fetch_add(1, Ordering::Relaxed) % self.ports.len();
            match TcpStream::connect(("127.0.0.1", self.ports[number])).await {
                Ok(stream) => {
                    self.served[number].fetch_add(1, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// What came until the end of the head, and perhaps a part of the body.
async fn read_head(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::with_capacity(2_048);
    loop {
        if request.len() > MAX_HEAD || client.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if request.windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(request);
        }
    }
}

/// The request, with the wish that its connection ends with it.
fn closing(request: &[u8]) -> Option<Vec<u8>> {
    let end = request.windows(4).position(|end| end == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&request[..end]).ok()?;
    let stays = |line: &&str| !line.to_ascii_lowercase().starts_with("connection:");
    let lines: Vec<&str> = head.split("\r\n").filter(stays).chain(["connection: close"]).collect();
    Some([lines.join("\r\n").as_bytes(), &request[end..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GET by hand.
    async fn ask(stream: &mut TcpStream) -> Result<String> {
        stream.write_all(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Answers each connection with its own name and the request.
    async fn echo(name: &'static str) -> Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let request = read_head(&mut stream).await.unwrap();
                let _ = stream.write_all(&[name.as_bytes(), b" ", &request].concat()).await;
            }
        });
        Ok(port)
    }

    #[tokio::test]
    async fn each_request_goes_to_another_gateway() -> Result<()> {
        let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
        let balancer = Balancer::start(&[echo("a").await?, closed, echo("b").await?]).await?;
        let mut seen = String::new();
        for _ in 0..4 {
            let mut stream = TcpStream::connect(("127.0.0.1", balancer.port)).await?;
            let answer = ask(&mut stream).await?;
            assert!(answer.ends_with("GET /x HTTP/1.1\r\nHost: h\r\nconnection: close\r\n\r\n"), "{answer}");
            seen.push_str(&answer[..1]);
        }
        assert!(["abab", "abba", "aabb"].contains(&seen.as_str()), "{seen}");
        assert_eq!(balancer.served().iter().sum::<usize>(), 4);
        assert!(balancer.all_served().is_err(), "one was down");
        Ok(())
    }
}
