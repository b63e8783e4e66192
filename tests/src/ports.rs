//! Ports of the loopback address that stay ours: a server that is killed finds its port free when it starts again.
//!
//! They lie below the range from which the kernel takes the ports of outgoing connections: a connection to a server that
//! is down could otherwise be given that server's port, and even connect to itself. Processes share the range by
//! blocks; whoever listens on the first port of a block has the block for as long as it lives.

use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

/// Below 32768, where Linux begins to take ports for outgoing connections, and above most services.
const FIRST: u16 = 20_000;
const BLOCKS: u16 = 190;
/// Enough for the largest cluster of a suite.
const BLOCK: u16 = 64;

/// The blocks of this process; the last one is in use.
static TAKEN: Mutex<Vec<Block>> = Mutex::new(Vec::new());

struct Block {
    /// Held as long as the process lives: it keeps the block.
    _first: TcpListener,
    next: u16,
    end: u16,
}

fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind(("127.0.0.1", port)).ok()
}

impl Block {
    /// The first block that nobody has. Processes begin at different ones, so that they rarely meet.
    fn take() -> Result<Block> {
        let start = std::process::id() % u32::from(BLOCKS);
        let order = (0..BLOCKS).map(|offset| (start as u16 + offset) % BLOCKS);
        let mut blocks = order.filter_map(|number| {
            let first = FIRST + number * BLOCK;
            Some(Block { _first: listen(first)?, next: first + 1, end: first + BLOCK })
        });
        blocks.next().context("all blocks of ports are taken")
    }

    /// The next port that nobody listens on.
    fn next(&mut self) -> Option<u16> {
        let free = (self.next..self.end).find(|port| listen(*port).is_some())?;
        self.next = free + 1;
        Some(free)
    }
}

/// A port that nobody listens on and that no other test process will get.
pub fn free_port() -> Result<u16> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(port) = taken.last_mut().and_then(Block::next) {
            return Ok(port);
        }
        taken.push(Block::take()?);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_are_free_distinct_and_never_of_another_block() -> Result<()> {
        let ports: BTreeSet<u16> = (0..200).map(|_| free_port()).collect::<Result<_>>()?;
        assert_eq!(ports.len(), 200);
        assert!(ports.iter().all(|port| (FIRST..32_768).contains(port) && listen(*port).is_some()));
        let other = Block::take()?;
        assert!(ports.iter().all(|port| !(other.next - 1..other.end).contains(port)));
        Ok(())
    }
}
