//! Where one HTTP/1.1 request ends and the next begins: just enough to answer some of them in a server's place.

/// Longest head of a request; a longer one is passed on without being understood.
const MAX_HEAD: usize = 64 << 10;

/// `PROPPATCH`, and some.
const LONGEST_METHOD: usize = 16;

/// What a piece of a client's stream is.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// The head of a request, and whether it ends the request (there is no body).
    Head(Vec<u8>, bool),
    /// A part of a body, and whether the request ends with it.
    Body(Vec<u8>, bool),
    /// Bytes of a stream that cannot be followed: passed on as they are.
    Opaque(Vec<u8>),
}

/// Cuts the stream of a client into [`Piece`]s.
#[derive(Debug, Default)]
pub struct Requests {
    buffer: Vec<u8>,
    state: State,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    InHead,
    InBody(u64),
    Lost,
}

impl Requests {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next piece, if there is a whole one.
    pub fn next_piece(&mut self) -> Option<Piece> {
        if self.buffer.is_empty() {
            return None;
        }
        match self.state {
            State::Lost => Some(Piece::Opaque(std::mem::take(&mut self.buffer))),
            State::InBody(left) => {
                let length = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let rest = left - length as u64;
                self.state = if rest == 0 { State::InHead } else { State::InBody(rest) };
                Some(Piece::Body(self.take(length), rest == 0))
            }
            State::InHead => {
                let end = self.buffer.windows(4).position(|four| four == b"\r\n\r\n");
                let is_endless = end.is_none() && self.buffer.len() > MAX_HEAD;
                if is_endless || !begins_like_a_request(&self.buffer) {
                    self.state = State::Lost;
                    return self.next_piece();
                }
                let end = end?;
                let head = self.take(end + 4);
                match body_length(&head) {
                    Some(0) => Some(Piece::Head(head, true)),
                    Some(length) => {
                        self.state = State::InBody(length);
                        Some(Piece::Head(head, false))
                    }
                    None => {
                        self.state = State::Lost;
                        Some(Piece::Opaque(head))
                    }
                }
            }
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }
}

/// Whether these first bytes can be a method: other protocols must not be held back until an end of a head comes.
fn begins_like_a_request(bytes: &[u8]) -> bool {
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    method.len() <= LONGEST_METHOD && method.iter().all(u8::is_ascii_uppercase)
}

/// The length of the body that follows a head; nothing where that is not said in advance, or it is no HTTP/1.1.
fn body_length(head: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    if !lines.next()?.ends_with("HTTP/1.1") {
        return None;
    }
    let mut length = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") || name.eq_ignore_ascii_case("upgrade") {
            return None;
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n";
    const PUT: &[u8] = b"PUT /b HTTP/1.1\r\nContent-Length: 5\r\n\r\n";

    fn pieces(stream: &[u8], at_once: usize) -> Vec<Piece> {
        let mut requests = Requests::default();
        let mut found = Vec::new();
        for part in stream.chunks(at_once) {
            requests.push(part);
            while let Some(piece) = requests.next_piece() {
                match (found.last_mut(), piece) {
                    (Some(Piece::Body(before, end)), Piece::Body(more, last)) if !*end => {
                        before.extend(more);
                        *end = last;
                    }
                    (_, piece) => found.push(piece),
                }
            }
        }
        found
    }

    #[test]
    fn requests_are_told_apart_however_they_arrive() {
        let stream = [GET, PUT, b"12345", GET].concat();
        let expected = [
            Piece::Head(GET.to_vec(), true),
            Piece::Head(PUT.to_vec(), false),
            Piece::Body(b"12345".to_vec(), true),
            Piece::Head(GET.to_vec(), true),
        ];
        for at_once in [1, 2, 7, stream.len()] {
            assert_eq!(pieces(&stream, at_once), expected, "{at_once}");
        }
    }

    #[test]
    fn what_is_not_understood_is_passed_on() {
        for stream in [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxyz"[..],
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"\xff\xfe without a head",
        ] {
            let all: Vec<u8> = pieces(stream, stream.len())
                .into_iter()
                .flat_map(|piece| match piece {
                    Piece::Opaque(bytes) => bytes,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(all, stream);
        }
    }
}
