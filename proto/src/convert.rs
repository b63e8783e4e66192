//! Strict conversions of small values. Records are in `convert_job` and `convert_task`.

use bytes::Bytes;
use flatbed_types::job::{ObjectPointer, SourcePin, Volume};
use flatbed_types::request::{AnswerForm, Associated, Dialect, ForeignPatients, Remark};
use flatbed_types::{
    Codec, ErrorCode, ExportRequest, Instant, KeyRange, Lane, Level, Position, ResourceType, Section,
};

use crate::wire::types as wire;

/// A message that does not mean anything valid; names the part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub &'static str);

/// A value that has a form on the wire.
pub trait Wire: Sized {
    /// That form.
    type Message;
    /// To the wire.
    fn to_wire(&self) -> Self::Message;
    /// From the wire, checked.
    fn from_wire(message: Self::Message) -> Result<Self, Malformed>;
}

/// The value of a field that must be there.
pub fn required<W: Wire>(field: Option<W::Message>, name: &'static str) -> Result<W, Malformed> {
    W::from_wire(field.ok_or(Malformed(name))?)
}

/// The value of a field that may be missing.
pub fn optional<W: Wire>(field: Option<W::Message>) -> Result<Option<W>, Malformed> {
    field.map(W::from_wire).transpose()
}

/// All values of a repeated field.
pub fn each<W: Wire, C: FromIterator<W>>(field: Vec<W::Message>) -> Result<C, Malformed> {
    field.into_iter().map(W::from_wire).collect()
}

/// To a repeated field.
pub fn each_to_wire<'a, W: Wire + 'a>(values: impl IntoIterator<Item = &'a W>) -> Vec<W::Message> {
    values.into_iter().map(Wire::to_wire).collect()
}

/// A 128-bit number of 16 bytes.
pub fn u128_from(bytes: &Bytes, name: &'static str) -> Result<u128, Malformed> {
    <[u8; 16]>::try_from(bytes.as_ref()).map(u128::from_be_bytes).map_err(|_| Malformed(name))
}

/// 16 bytes of a 128-bit number.
pub fn u128_bytes(value: u128) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

/// A SHA-256 of 32 bytes.
pub fn sha256_from(bytes: &Bytes) -> Result<[u8; 32], Malformed> {
    bytes.as_ref().try_into().map_err(|_| Malformed("sha256"))
}

/// A resource type by its name.
pub fn type_from(name: &str) -> Result<ResourceType, Malformed> {
    name.parse().map_err(|_| Malformed("resource type"))
}

/// An error class by its number.
pub fn error_code_from(number: u32) -> ErrorCode {
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    index.and_then(|index| ErrorCode::ALL.get(index).copied()).unwrap_or(ErrorCode::Internal)
}

/// The number of an error class.
pub fn error_code_number(code: ErrorCode) -> u32 {
    ErrorCode::ALL.iter().position(|each| *each == code).map_or(0, |index| index as u32 + 1)
}

impl Wire for Position {
    type Message = wire::Position;
    fn to_wire(&self) -> wire::Position {
        match self {
            Position::At(key) => wire::Position { key: Bytes::copy_from_slice(key), end: false },
            Position::End => wire::Position { key: Bytes::new(), end: true },
        }
    }
    fn from_wire(message: wire::Position) -> Result<Self, Malformed> {
        Ok(if message.end { Position::End } else { Position::At(message.key.to_vec()) })
    }
}

impl Wire for KeyRange {
    type Message = wire::KeyRange;
    fn to_wire(&self) -> wire::KeyRange {
        wire::KeyRange { lo: Some(self.lo.to_wire()), hi: Some(self.hi.to_wire()) }
    }
    fn from_wire(message: wire::KeyRange) -> Result<Self, Malformed> {
        Ok(KeyRange { lo: required(message.lo, "range.lo")?, hi: required(message.hi, "range.hi")? })
    }
}

impl Wire for Lane {
    type Message = wire::Lane;
    fn to_wire(&self) -> wire::Lane {
        let section = match self.section {
            Section::Compartment => wire::Section::Compartment,
            Section::Standalone => wire::Section::Standalone,
            Section::Organised => wire::Section::Organised,
        };
        wire::Lane { resource_type: self.resource_type.name().to_owned(), section: section.into() }
    }
    fn from_wire(message: wire::Lane) -> Result<Self, Malformed> {
        let section = match message.section() {
            wire::Section::Compartment => Section::Compartment,
            wire::Section::Standalone => Section::Standalone,
            wire::Section::Organised => Section::Organised,
            wire::Section::Unspecified => return Err(Malformed("lane.section")),
        };
        Ok(Lane { resource_type: type_from(&message.resource_type)?, section })
    }
}

impl Wire for Volume {
    type Message = wire::Volume;
    fn to_wire(&self) -> wire::Volume {
        wire::Volume { rows: self.rows, bytes: self.bytes }
    }
    fn from_wire(message: wire::Volume) -> Result<Self, Malformed> {
        Ok(Volume { rows: message.rows, bytes: message.bytes })
    }
}

impl Wire for ObjectPointer {
    type Message = wire::ObjectPointer;
    fn to_wire(&self) -> wire::ObjectPointer {
        let sha256 = Bytes::copy_from_slice(&self.sha256);
        wire::ObjectPointer { key: self.key.clone(), sha256, size: self.size }
    }
    fn from_wire(message: wire::ObjectPointer) -> Result<Self, Malformed> {
        let sha256 = sha256_from(&message.sha256)?;
        Ok(ObjectPointer { key: message.key, sha256, size: message.size })
    }
}

impl Wire for SourcePin {
    type Message = wire::SourcePin;
    fn to_wire(&self) -> wire::SourcePin {
        wire::SourcePin { source: self.source.clone(), snapshot: self.snapshot.clone() }
    }
    fn from_wire(message: wire::SourcePin) -> Result<Self, Malformed> {
        Ok(SourcePin { source: message.source, snapshot: message.snapshot })
    }
}

impl Wire for Codec {
    type Message = i32;
    fn to_wire(&self) -> i32 {
        match self {
            Codec::None => wire::Codec::None.into(),
            Codec::Gzip => wire::Codec::Gzip.into(),
            Codec::Zstd => wire::Codec::Zstd.into(),
        }
    }
    fn from_wire(message: i32) -> Result<Self, Malformed> {
        match wire::Codec::try_from(message) {
            Ok(wire::Codec::None) => Ok(Codec::None),
            Ok(wire::Codec::Gzip) => Ok(Codec::Gzip),
            Ok(wire::Codec::Zstd) => Ok(Codec::Zstd),
            Ok(wire::Codec::Unspecified) | Err(_) => Err(Malformed("codec")),
        }
    }
}

impl Wire for ExportRequest {
    type Message = wire::ExportRequest;
    fn to_wire(&self) -> wire::ExportRequest {
        let (level, group) = match &self.level {
            Level::System => (wire::Level::System, String::new()),
            Level::Patient => (wire::Level::Patient, String::new()),
            Level::Group(id) => (wire::Level::Group, id.to_string()),
        };
        wire::ExportRequest {
            level: level.into(),
            group,
            types: self.types.iter().map(|kind| kind.name().to_owned()).collect(),
            since: self.since.map(Instant::nanos),
            until: self.until.map(Instant::nanos),
            patients: self.patients.iter().map(ToString::to_string).collect(),
            filters: self.filters.clone(),
            elements: self.elements.iter().map(ToString::to_string).collect(),
            associated: match self.associated {
                Associated::Unasked => wire::Associated::Unspecified,
                Associated::LatestProvenance => wire::Associated::LatestProvenance,
                Associated::RelevantProvenance => wire::Associated::RelevantProvenance,
            }
            .into(),
            by_patient: self.by_patient,
            min_file_bytes: self.min_file_bytes.unwrap_or(0),
            max_file_bytes: self.max_file_bytes.unwrap_or(0),
            dialect: match self.form.dialect {
                Dialect::Legacy => wire::Dialect::Unspecified,
                Dialect::V4 => wire::Dialect::V4,
            }
            .into(),
            separate_status: self.form.separate_status,
            partial_manifests: self.form.partial_manifests,
            remarks: each_to_wire(&self.remarks),
            attachment_base: self.attachment_base.clone().unwrap_or_default(),
            cohort: self.cohort.as_ref().map(Wire::to_wire),
            report_foreign_patients: self.foreign_patients == ForeignPatients::Reported,
        }
    }
    fn from_wire(message: wire::ExportRequest) -> Result<Self, Malformed> {
        let id = |text: &String| text.parse().map_err(|_| Malformed("request: FHIR id"));
        let level = match message.level() {
            wire::Level::System => Level::System,
            wire::Level::Patient => Level::Patient,
            wire::Level::Group => Level::Group(id(&message.group)?),
            wire::Level::Unspecified => return Err(Malformed("request.level")),
        };
        Ok(ExportRequest {
            level,
            types: message.types.iter().map(|name| type_from(name)).collect::<Result<_, _>>()?,
            since: message.since.map(Instant::from_nanos),
            until: message.until.map(Instant::from_nanos),
            patients: message.patients.iter().map(id).collect::<Result<_, _>>()?,
            associated: match message.associated() {
                wire::Associated::Unspecified => Associated::Unasked,
                wire::Associated::LatestProvenance => Associated::LatestProvenance,
                wire::Associated::RelevantProvenance => Associated::RelevantProvenance,
            },
            form: AnswerForm {
                dialect: match message.dialect() {
                    wire::Dialect::Unspecified => Dialect::Legacy,
                    wire::Dialect::V4 => Dialect::V4,
                },
                separate_status: message.separate_status,
                partial_manifests: message.partial_manifests,
            },
            elements: message
                .elements
                .iter()
                .map(|text| text.parse().map_err(|_| Malformed("request: element")))
                .collect::<Result<_, _>>()?,
            filters: message.filters,
            by_patient: message.by_patient,
            min_file_bytes: Some(message.min_file_bytes).filter(|bytes| *bytes > 0),
            max_file_bytes: Some(message.max_file_bytes).filter(|bytes| *bytes > 0),
            remarks: each(message.remarks)?,
            attachment_base: Some(message.attachment_base).filter(|base| !base.is_empty()),
            cohort: optional(message.cohort)?,
            foreign_patients: match message.report_foreign_patients {
                true => ForeignPatients::Reported,
                false => ForeignPatients::Refused,
            },
        })
    }
}

impl Wire for Remark {
    type Message = wire::Remark;
    fn to_wire(&self) -> wire::Remark {
        wire::Remark {
            code: self.code.clone(),
            text: self.text.clone(),
            location: self.location.clone().unwrap_or_default(),
        }
    }
    fn from_wire(message: wire::Remark) -> Result<Self, Malformed> {
        let location = Some(message.location).filter(|location| !location.is_empty());
        Ok(Remark { code: message.code, text: message.text, location })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_types::FhirId;
    use proptest::prelude::*;

    fn level() -> impl Strategy<Value = Level> {
        let group = "[A-Za-z0-9.-]{1,64}".prop_map(|id| Level::Group(id.parse().unwrap()));
        prop_oneof![Just(Level::System), Just(Level::Patient), group]
    }

    fn associated() -> impl Strategy<Value = Associated> {
        prop_oneof![
            Just(Associated::Unasked),
            Just(Associated::LatestProvenance),
            Just(Associated::RelevantProvenance)
        ]
    }

    fn form() -> impl Strategy<Value = AnswerForm> {
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(v4, separate_status, partial_manifests)| {
            let dialect = if v4 { Dialect::V4 } else { Dialect::Legacy };
            AnswerForm { dialect, separate_status, partial_manifests }
        })
    }

    fn remark() -> impl Strategy<Value = Remark> {
        let location = proptest::option::of("http\\.[a-z]{1,9}");
        ("[a-z-]{1,9}", ".{0,20}", location).prop_map(|(code, text, location)| Remark {
            code,
            text,
            location,
        })
    }

    prop_compose! {
        fn request()(
            level in level(),
            types in prop::collection::btree_set(prop::sample::select(vec!["Patient", "Claim", "Group"]), 0..3),
            since in prop::option::of(any::<i64>().prop_map(Instant::from_nanos)),
            until in prop::option::of(any::<i64>().prop_map(Instant::from_nanos)),
            patients in prop::collection::btree_set("[A-Za-z0-9.-]{1,9}", 0..3),
            filters in prop::collection::vec("[A-Z][a-z]{3}\\?[a-z]{1,5}=.{0,5}", 0..3),
            elements in prop::collection::btree_set("(Patient\\.)?[a-z][A-Za-z]{0,9}", 0..3),
            associated in associated(),
            by_patient in any::<bool>(),
            min_file_bytes in prop::option::of(1_u64..),
            max_file_bytes in prop::option::of(1_u64..),
            form in form(),
            remarks in prop::collection::vec(remark(), 0..3),
            attachment_base in prop::option::of("https://[a-z]{1,9}/fhir"),
            foreign_patients in prop_oneof![Just(ForeignPatients::Refused), Just(ForeignPatients::Reported)],
        ) -> ExportRequest {
            ExportRequest {
                level,
                types: types.iter().map(|name| name.parse().unwrap()).collect(),
                since,
                until,
                patients: patients.iter().map(|id| id.parse::<FhirId>().unwrap()).collect(),
                filters,
                elements: elements.iter().map(|name| name.parse().unwrap()).collect(),
                associated,
                by_patient,
                min_file_bytes,
                max_file_bytes,
                form,
                remarks,
                attachment_base,
                cohort: None,
                foreign_patients,
            }
        }
    }

    proptest! {
        #[test]
        fn vn_05_a_request_comes_back_as_it_went(request in request()) {
            prop_assert_eq!(ExportRequest::from_wire(request.to_wire()), Ok(request));
        }
    }

    /// Records of jobs that were started before a field was known.
    #[test]
    fn what_is_missing_is_what_was_not_asked_for() {
        let old = wire::ExportRequest { level: wire::Level::Patient.into(), ..Default::default() };
        assert_eq!(ExportRequest::from_wire(old), Ok(ExportRequest::everything(Level::Patient)));
    }

    #[test]
    fn what_no_kick_off_would_send_is_malformed() {
        let good = ExportRequest::everything(Level::Patient).to_wire();
        let text = |text: &str| vec![text.to_owned()];
        let bad = [
            wire::ExportRequest { level: 0, ..good.clone() },
            wire::ExportRequest { level: wire::Level::Group.into(), ..good.clone() },
            wire::ExportRequest { types: text("Nothing"), ..good.clone() },
            wire::ExportRequest { patients: text("a b"), ..good.clone() },
            wire::ExportRequest { elements: text("Patient.name.family"), ..good.clone() },
        ];
        for message in bad {
            assert!(ExportRequest::from_wire(message.clone()).is_err(), "{message:?}");
        }
    }
}
