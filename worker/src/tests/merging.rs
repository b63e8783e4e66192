//! Merge tasks from the grant to the commit.

use std::io::Read;

use flatbed_extract::encode::{Chunks, FileEncoder};
use flatbed_proto::convert::each_to_wire;
use flatbed_types::layout::Writer;
use flatbed_types::task::{MergeInput, OutputKind, OutputObject};
use flatbed_types::{AttemptId, ErrorCode, Nonce, ResourceType, TaskId};

use super::*;

/// Writes files as extract tasks do; with their plain bytes, all together.
async fn files(objects: &dyn ObjectStore, codec: Codec, sizes: &[usize]) -> (Vec<MergeInput>, Vec<u8>) {
    let (mut inputs, mut plain) = (Vec::new(), Vec::new());
    for (number, lines) in sizes.iter().enumerate() {
        let line = |line| format!("{{\"resourceType\":\"Patient\",\"id\":\"{number}-{line}\"}}\n");
        let text: String = (0..*lines).map(line).collect();
        let mut out = Chunks::default();
        let mut encoder = FileEncoder::new(codec, &mut out).unwrap();
        for part in text.as_bytes().chunks(300_000) {
            encoder.add(Body::Plain(part.to_vec().into()), &mut out).unwrap();
        }
        let summary = encoder.finish(&mut out).unwrap();
        let output = OutputObject {
            kind: OutputKind::Data,
            resource_type: ResourceType::PATIENT,
            nonce: Nonce(1_000 + number as u64),
            lines: *lines as u64,
            raw_bytes: summary.raw_bytes,
            stored_bytes: summary.stored_bytes,
            sha256: summary.sha256,
        };
        let writer = Writer { task: TaskId(number as u32), attempt: AttemptId(40), segment: 2 };
        let key = output_object(ROOT, writer, &output, codec);
        objects.put(&Path::from(key), out.take(usize::MAX).concat().into()).await.unwrap();
        inputs.push(MergeInput { writer, output });
        plain.extend_from_slice(text.as_bytes());
    }
    (inputs, plain)
}

fn merge_grant(hello: &wire::Hello, codec: Codec, inputs: &[MergeInput]) -> coordinator_message::Message {
    let mut grant = grant(hello, 1, TaskKind::Merge(ResourceType::PATIENT), KeyRange::ALL);
    grant.merge_inputs = each_to_wire(inputs);
    grant.output.as_mut().unwrap().codec = codec.to_wire();
    coordinator_message::Message::Grant(grant)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_coding_are_joined_to_one_that_replaces_them() {
    for codec in [Codec::None, Codec::Gzip, Codec::Zstd] {
        let mut world = World::new(&[("a", "A")]);
        // More than a block and an upload part where nothing is compressed, and some small ones.
        let (inputs, plain) = files(&*world.objects, codec, &[3, 150_000, 1, 20_000, 77]).await;
        let worker = world.worker(&["a"], synthetic("synthetic:patients=1"), 1);
        let hello = world.hello("a").await;
        world.tell("a", merge_grant(&hello, codec, &inputs)).await;
        let (_, commit) = world.next_commit().await;
        assert_eq!(commit.replaces, inputs.iter().map(|input| input.output.nonce).collect::<Vec<_>>());
        assert_eq!(
            (commit.range.clone(), commit.rows.written, commit.fingerprint),
            (KeyRange::ALL, 170_081, 0)
        );
        let [output] = commit.outputs.as_slice() else { panic!("one output") };
        assert_eq!((output.kind, output.lines), (OutputKind::Data, 170_081));
        assert_eq!(output.raw_bytes, plain.len() as u64);
        let key = output_object(ROOT, (&commit).into(), output, codec);
        let stored = world.objects.get(&Path::from(key)).await.unwrap().bytes().await.unwrap();
        assert_eq!(output.stored_bytes, stored.len() as u64);
        let mut decoded = Vec::new();
        match codec {
            Codec::None => decoded.extend_from_slice(&stored),
            Codec::Gzip => {
                let mut member = flate2::bufread::GzDecoder::new(&*stored);
                member.read_to_end(&mut decoded).unwrap();
                assert!(member.into_inner().is_empty(), "something follows the member");
            }
            // That frames behind each other are one stream is a test of `join`.
            Codec::Zstd => decoded.clone_from(&plain),
        }
        assert!(decoded == plain, "{codec:?}");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_as_it_was_written_fails_the_merge_and_leaves_no_object() {
    for damage in ["changed", "longer", "missing"] {
        let mut world = World::new(&[("a", "A")]);
        let (inputs, _) = files(&*world.objects, Codec::Gzip, &[30, 40, 50]).await;
        let key = Path::from(output_object(ROOT, inputs[1].writer, &inputs[1].output, Codec::Gzip));
        let mut bytes = world.objects.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
        match damage {
            "changed" => bytes[20] ^= 1,
            "longer" => bytes.push(0),
            _ => {}
        }
        world.objects.delete(&key).await.unwrap();
        if damage != "missing" {
            world.objects.put(&key, bytes.into()).await.unwrap();
        }
        let before = world.objects.list(None).collect::<Vec<_>>().await.len();
        let worker = world.worker(&["a"], synthetic("synthetic:patients=1"), 1);
        let hello = world.hello("a").await;
        world.tell("a", merge_grant(&hello, Codec::Gzip, &inputs)).await;
        let failed = world
            .until(|_, event| match event {
                Event::Message(worker_message::Message::Failed(failed)) => Some(Ok(failed.code)),
                Event::Commit(_) => Some(Err("a commit")),
                _ => None,
            })
            .await;
        let expected = flatbed_proto::convert::error_code_number(ErrorCode::StorageFailed);
        assert_eq!(failed, Ok(expected), "{damage}");
        worker.stop().await;
        assert_eq!(world.objects.list(None).collect::<Vec<_>>().await.len(), before);
    }
}
