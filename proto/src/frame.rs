//! The frame of stored records: `version u8 ‖ protobuf ‖ crc32c u32le` (`coordination.md` 3.2).

use prost::Message;

use crate::convert::Malformed;

/// Version of all records written by this code.
const VERSION: u8 = 1;

/// The bytes to store for a message.
pub fn seal(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.encoded_len() + 5);
    bytes.push(VERSION);
    // Encoding into a Vec cannot run out of room, the only way in which it fails.
    let _ = message.encode(&mut bytes);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The message in stored bytes. Refuses damage and versions that this code does not know.
pub fn open<M: Message + Default>(bytes: &[u8]) -> Result<M, Malformed> {
    let (body, checksum) = bytes.split_last_chunk::<4>().ok_or(Malformed("record too short"))?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err(Malformed("record checksum"));
    }
    match body.split_first() {
        Some((&VERSION, payload)) => M::decode(payload).map_err(|_| Malformed("record content")),
        Some(_) => Err(Malformed("record version (written by a newer release?)")),
        None => Err(Malformed("record too short")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::types::Volume;

    #[test]
    fn damage_and_unknown_versions_are_refused() {
        let sealed = seal(&Volume { rows: 7, bytes: 900 });
        assert_eq!(open::<Volume>(&sealed), Ok(Volume { rows: 7, bytes: 900 }));
        for index in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[index] ^= 0x10;
            assert!(open::<Volume>(&damaged).is_err());
            assert!(open::<Volume>(&sealed[..index]).is_err());
        }
        let mut newer = sealed[..sealed.len() - 4].to_vec();
        newer[0] = VERSION + 1;
        newer.extend_from_slice(&crc32c::crc32c(&newer).to_le_bytes());
        assert!(open::<Volume>(&newer).is_err());
    }
}
