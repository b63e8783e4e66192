//! The proxy before a small server that answers every request with its body and counts them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use anyhow::ensure;

use super::*;

/// Longer than anything takes that is not held back.
const PATIENCE: Duration = Duration::from_millis(400);

struct Lab {
    proxy: Proxy,
    served: Arc<AtomicU64>,
}

impl Lab {
    fn start() -> Result<Lab> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let (port, served) = (listener.local_addr()?.port(), Arc::new(AtomicU64::new(0)));
        let counting = served.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let counting = counting.clone();
                std::thread::spawn(move || answer(client, &counting));
            }
        });
        Ok(Lab { proxy: Proxy::start(port, 7)?, served })
    }

    fn client(&self) -> Result<TcpStream> {
        let client = TcpStream::connect(("127.0.0.1", self.proxy.port()))?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(client)
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    /// Waits until something has happened in another thread.
    fn until(what: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !what() {
            ensure!(started.elapsed() < Duration::from_secs(10), "it did not happen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Lengths of one digit; bodies come back as they are.
fn answer(mut client: TcpStream, served: &AtomicU64) {
    let mut text = Vec::new();
    let mut byte = [0];
    while client.read(&mut byte).is_ok_and(|got| got == 1) {
        text.push(byte[0]);
        let Some(head) = text.strip_suffix(b"\r\n\r\n") else { continue };
        let length = usize::from(head.last().copied().unwrap_or(b'0') - b'0');
        let mut body = vec![0; length];
        if client.read_exact(&mut body).is_err() {
            return;
        }
        served.fetch_add(1, Ordering::SeqCst);
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", String::from_utf8_lossy(&body));
        if client.write_all(answer.as_bytes()).is_err() {
            return;
        }
        text.clear();
    }
}

fn send(client: &mut TcpStream, body: &str) -> Result<()> {
    Ok(client
        .write_all(format!("PUT / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes())?)
}

/// Reads one answer: its first line and its body.
fn receive(client: &mut TcpStream) -> Result<(String, String)> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.context("no length")?.trim().parse()?];
    client.read_exact(&mut body)?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), String::from_utf8(body)?))
}

fn ask(client: &mut TcpStream, body: &str) -> Result<(String, String)> {
    send(client, body)?;
    receive(client)
}

/// Whether nothing comes back within a while.
fn is_silent(client: &mut TcpStream) -> Result<bool> {
    client.set_read_timeout(Some(PATIENCE))?;
    let silent = client.read(&mut [0]).is_err_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    });
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(silent)
}

fn is_reset(client: &mut TcpStream) -> bool {
    client.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Whether a request on a new connection is met by a reset, which may come before it or after it.
fn is_turned_away(lab: &Lab) -> Result<bool> {
    let mut client = lab.client()?;
    Ok(send(&mut client, "x").is_err() || is_reset(&mut client))
}

#[test]
fn in_good_weather_everything_passes() -> Result<()> {
    let lab = Lab::start()?;
    let mut client = lab.client()?;
    assert_eq!(ask(&mut client, "one")?.1, "one");
    assert_eq!(ask(&mut client, "two")?.1, "two");
    client.shutdown(Shutdown::Write)?;
    assert_eq!(client.read(&mut [0])?, 0, "the server's end is passed on");
    assert_eq!((lab.served(), lab.proxy.accepted(), lab.proxy.harmed()), (2, 1, 0));
    Ok(())
}

#[test]
fn a_reset_hits_open_connections_and_new_ones() -> Result<()> {
    let lab = Lab::start()?;
    let mut client = lab.client()?;
    ask(&mut client, "x")?;
    lab.proxy.inject(Fault::Reset);
    assert!(is_reset(&mut client));
    assert!(is_turned_away(&lab)?);
    lab.proxy.heal();
    assert_eq!(ask(&mut lab.client()?, "z")?.1, "z");
    assert_eq!(lab.served(), 2);
    Ok(())
}

#[test]
fn a_black_hole_holds_everything_until_it_closes() -> Result<()> {
    let lab = Lab::start()?;
    let mut client = lab.client()?;
    ask(&mut client, "x")?;
    lab.proxy.inject(Fault::BlackHole);
    let mut late = lab.client()?;
    send(&mut client, "a")?;
    send(&mut late, "b")?;
    assert!(is_silent(&mut client)? && is_silent(&mut late)?);
    assert_eq!(lab.served(), 1);
    lab.proxy.heal();
    assert_eq!((receive(&mut client)?.1, receive(&mut late)?.1), ("a".to_owned(), "b".to_owned()));
    Ok(())
}

#[test]
fn a_swallowed_answer_is_one_to_a_request_that_was_carried_out() -> Result<()> {
    let lab = Lab::start()?;
    let mut client = lab.client()?;
    ask(&mut client, "x")?;
    lab.proxy.inject(Fault::SwallowAnswers);
    send(&mut client, "a")?;
    Lab::until(|| lab.served() == 2)?;
    assert!(is_silent(&mut client)?);
    lab.proxy.heal();
    assert_eq!(ask(&mut lab.client()?, "b")?.1, "b");
    Ok(())
}

#[test]
fn refused_requests_do_not_reach_the_server_and_leave_the_connection_usable() -> Result<()> {
    let lab = Lab::start()?;
    let mut client = lab.client()?;
    lab.proxy.inject(Fault::Unavailable { percent: 100 });
    let (line, body) = ask(&mut client, "12345")?;
    assert!(line.contains(" 503 ") && body.contains("SlowDown"), "{line}");
    assert_eq!((lab.served(), lab.proxy.harmed()), (0, 1));

    lab.proxy.inject(Fault::Unavailable { percent: 50 });
    let lines: Vec<String> = (0..60).map(|_| Ok(ask(&mut client, "x")?.0)).collect::<Result<_>>()?;
    let passed = lines.iter().filter(|line| line.contains(" 200 ")).count();
    assert!((10..50).contains(&passed), "{passed} of 60");
    assert_eq!(lab.served(), passed as u64);
    lab.proxy.heal();
    assert!(ask(&mut client, "x")?.0.contains(" 200 "));
    Ok(())
}

#[test]
fn delay_and_bandwidth_slow_down() -> Result<()> {
    let lab = Lab::start()?;
    let mut client = lab.client()?;
    ask(&mut client, "x")?;
    for fault in [Fault::Delay(PATIENCE), Fault::Bandwidth(100)] {
        lab.proxy.inject(fault);
        let started = Instant::now();
        ask(&mut client, "12345")?;
        assert!(started.elapsed() >= PATIENCE, "{fault:?}");
    }
    Ok(())
}

#[test]
fn luck_is_drawn_from_the_seed() -> Result<()> {
    let hit = || -> Result<Vec<bool>> {
        let lab = Lab::start()?;
        lab.proxy.inject_into(Fault::Reset, 50);
        (0..40).map(|_| is_turned_away(&lab)).collect()
    };
    let first = hit()?;
    let count = first.iter().filter(|hit| **hit).count();
    assert!((5..35).contains(&count), "{count} of 40");
    assert_eq!(first, hit()?);
    Ok(())
}
