//! C20: what arrives is what was sent, whatever serde makes of the type. Where JSON can say it, it is also
//! what JSON would give.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]
#![allow(clippy::float_cmp, reason = "values are to come back to the bit")]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use hatchery_proto::{Blob, Encoded, FrameError, Shared, value};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Deserialize, Serialize, Serializer};

/// There and back.
fn back<T: Serialize + DeserializeOwned + 'static>(sent: &T) -> T {
    let encoded = Encoded::of(sent).unwrap();
    encoded.decode().unwrap_or_else(|error| panic!("{error}"))
}

fn same<T: Serialize + DeserializeOwned + PartialEq + Debug + 'static>(sent: T) {
    assert_eq!(back(&sent), sent);
    // In a sequence, each name is written once.
    let many = vec![sent];
    assert_eq!(back(&many), many);
}

/// The same, and that JSON agrees.
fn as_json<T: Serialize + DeserializeOwned + PartialEq + Debug + 'static>(sent: T) {
    let json = serde_json::to_string(&sent).unwrap();
    assert_eq!(serde_json::from_str::<T>(&json).unwrap(), sent, "{json}");
    same(sent);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Range {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Attributes {
    #[serde(rename(serialize = "there", deserialize = "there"), alias = "elsewhere")]
    here: u8,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    some_words: Vec<String>,
    #[serde(default = "seven")]
    last_one: i64,
    #[serde(skip)]
    skipped: u8,
    #[serde(with = "as_text")]
    number: u64,
}

fn seven() -> i64 {
    7
}

mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Flat {
    id: u64,
    #[serde(flatten)]
    range: Range,
    #[serde(flatten)]
    rest: BTreeMap<String, i32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FlatTagged {
    id: u64,
    #[serde(flatten)]
    tagged: Internal,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum External {
    Unit,
    Newtype(u32),
    Tuple(u8, String),
    Struct { a: Option<u8>, b: Vec<Self> },
    Empty(),
    Nothing {},
    Inner(Box<Untagged>),
    Perhaps(Option<()>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Internal {
    Unit,
    Newtype(Range),
    Struct { a: u8, b: Option<String> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", content = "c")]
enum Adjacent {
    Unit,
    Newtype(i64),
    Tuple(i8, Option<i8>),
    Struct { x: u16 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    L(Vec<Self>),
    M { a: u8 },
    N(u64),
    I(i64),
    T(String),
    E(External),
    A(Adjacent),
    O(Option<bool>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Unit;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Newtype(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
enum Colour {
    Red,
    Green,
}

fn option<T: Debug + 'static>(of: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Option<T>> {
    proptest::option::of(of).boxed()
}

fn range() -> impl Strategy<Value = Range> {
    (option(any::<u32>()), option(any::<u32>())).prop_map(|(min, max)| Range { min, max })
}

fn internal() -> impl Strategy<Value = Internal> {
    prop_oneof![
        Just(Internal::Unit),
        range().prop_map(Internal::Newtype),
        (any::<u8>(), option(".{0,4}")).prop_map(|(a, b)| Internal::Struct { a, b }),
    ]
}

fn adjacent() -> impl Strategy<Value = Adjacent> {
    prop_oneof![
        Just(Adjacent::Unit),
        any::<i64>().prop_map(Adjacent::Newtype),
        (any::<i8>(), option(any::<i8>())).prop_map(|(a, b)| Adjacent::Tuple(a, b)),
        any::<u16>().prop_map(|x| Adjacent::Struct { x }),
    ]
}

fn untagged() -> impl Strategy<Value = Untagged> {
    let leaf = prop_oneof![
        any::<u8>().prop_map(|a| Untagged::M { a }),
        any::<u64>().prop_map(Untagged::N),
        (i64::MIN..0).prop_map(Untagged::I),
        // Not a name of a variant, which JSON takes for text as well.
        ".{0,40}".prop_map(Untagged::T),
        adjacent().prop_map(Untagged::A),
        any::<u32>().prop_map(|n| Untagged::E(External::Newtype(n))),
        (any::<u8>(), ".{0,3}").prop_map(|(a, b)| Untagged::E(External::Tuple(a, b))),
        option(any::<bool>()).prop_map(Untagged::O),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| prop::collection::vec(inner, 0..6).prop_map(Untagged::L))
}

fn external() -> impl Strategy<Value = External> {
    let leaf = prop_oneof![
        Just(External::Unit),
        any::<u32>().prop_map(External::Newtype),
        (any::<u8>(), ".{0,3}").prop_map(|(a, b)| External::Tuple(a, b)),
        Just(External::Empty()),
        Just(External::Nothing {}),
        untagged().prop_map(|inner| External::Inner(Box::new(inner))),
        Just(External::Perhaps(None)),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        (option(any::<u8>()), prop::collection::vec(inner, 0..4))
            .prop_map(|(a, b)| External::Struct { a, b })
    })
}

fn flat() -> impl Strategy<Value = Flat> {
    let rest = prop::collection::btree_map("x[a-z]{1,3}", any::<i32>(), 0..4);
    (any::<u64>(), range(), rest).prop_map(|(id, range, rest)| Flat { id, range, rest })
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let words = prop::collection::vec(".{0,5}", 0..3);
    (any::<u8>(), words, any::<i64>(), any::<u64>()).prop_map(
        |(here, some_words, last_one, number)| Attributes {
            here,
            some_words,
            last_one,
            skipped: 0,
            number,
        },
    )
}

proptest! {
    /// C20: structs and enums under every attribute that changes their form.
    #[test]
    fn what_json_would_give_is_what_arrives(
        ranges in prop::collection::vec(range(), 0..5),
        attributes in attributes(),
        internal in internal(),
        adjacent in adjacent(),
        external in external(),
    ) {
        as_json(ranges);
        as_json(attributes);
        as_json(internal);
        as_json(adjacent);
        as_json(external);
    }

    /// C20: what serde keeps in its own buffer before it knows the type.
    #[test]
    fn what_passes_through_serdes_buffer_is_what_arrives(
        flat in flat(),
        tagged in (any::<u64>(), internal()).prop_map(|(id, tagged)| FlatTagged { id, tagged }),
        untagged in untagged(),
    ) {
        // JSON's own reading is what counts here: an untagged value may have two readings.
        let json: Untagged = serde_json::from_str(&serde_json::to_string(&untagged).unwrap()).unwrap();
        prop_assert_eq!(back(&untagged), json);
        as_json(flat);
        as_json(tagged);
    }

    /// C20: numbers to the bit, text, keys of any type.
    #[test]
    fn what_json_cannot_say_arrives_too(
        wide in any::<(u128, i128, u64, i64, i8, u16)>(),
        floats in any::<(u32, u64)>(),
        text in any::<(char, String)>(),
        keys in prop::collection::btree_map(any::<(i8, bool)>(), option(option(any::<u8>())), 0..5),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        nested in option(option(option(Just(())))),
    ) {
        same(wide);
        let floats = (f32::from_bits(floats.0), f64::from_bits(floats.1));
        let came = back(&floats);
        prop_assert_eq!(came.0.to_bits(), floats.0.to_bits());
        prop_assert_eq!(came.1.to_bits(), floats.1.to_bits());
        same(text);
        same(keys);
        same(Blob::from(bytes.clone()));
        same(bytes);
        same(nested);
    }
}

/// C20: `Some` of nothing is not nothing, plainly and in all the ways through serde's buffer.
#[test]
fn some_of_nothing_is_not_nothing() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Kept {
        Deep { a: Option<Option<u8>>, b: Option<()> },
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(Option<u8>);
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flattened {
        #[serde(flatten)]
        kept: Kept,
    }
    for deep in [None, Some(None), Some(Some(None)), Some(Some(Some(1)))] {
        same::<Option<Option<Option<u8>>>>(deep);
    }
    same(Some(()));
    same(None::<()>);
    same(Some(Unit));
    same(Some(Wrapped(None)));
    same(vec![None, Some(Wrapped(None)), Some(Wrapped(Some(1)))]);
    same(External::Perhaps(Some(())));
    for (a, b) in [(None, None), (Some(None), Some(())), (Some(Some(1)), None)] {
        same(Kept::Deep { a, b });
        same(Flattened { kept: Kept::Deep { a, b } });
    }
    // A type that doesn't ask for the mark doesn't see it.
    assert_eq!(Encoded::of(&Some(())).unwrap().decode::<()>(), Ok(()));
    assert_eq!(Encoded::of(&Some(7)).unwrap().decode::<u8>(), Ok(7));
}

/// C20: whatever stands in the place of a key.
#[test]
fn keys_are_of_any_type() {
    same(HashMap::from([(Newtype(1), 1), (Newtype(2), 2)]));
    same(HashMap::from([(Colour::Red, vec![Colour::Green]), (Colour::Green, vec![])]));
    same(HashMap::from([((1_u8, 'x'), Unit)]));
    same(BTreeMap::from([(None, 0), (Some(1_u8), 1)]));
    same(BTreeMap::from([(vec![1_u64], "one".to_owned())]));
    same(BTreeMap::from([(u128::MAX, i128::MIN)]));
}

/// C20: a map whose keys are numbers is no struct and no enum, though serde numbers the fields and variants
/// of those. JSON has no such keys.
#[test]
fn numbers_as_keys_name_no_field_and_no_variant() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Kept {
        Struct { a: u8 },
        Enum(External),
        Map(BTreeMap<u32, u8>),
        Wide(BTreeMap<u64, String>),
        Signed(BTreeMap<Option<i8>, bool>),
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flattened {
        #[serde(flatten)]
        kept: BTreeMap<u16, u8>,
    }
    for key in [0, 1, 127, 128, 65_536, u32::MAX] {
        same(Kept::Map(BTreeMap::from([(key, 5)])));
        same(Kept::Map(BTreeMap::from([(key, 5), (9, 9)])));
    }
    same(Kept::Wide(BTreeMap::from([(0, "x".to_owned()), (u64::MAX, "y".to_owned())])));
    same(Kept::Signed(BTreeMap::from([(Some(0), true), (Some(-1), false), (None, true)])));
    same(Kept::Struct { a: 1 });
    same(Kept::Enum(External::Newtype(1)));
    same(Flattened { kept: BTreeMap::from([(0, 1), (300, 2)]) });
}

/// C20: types that look at whether a format is human readable, also in serde's buffer.
#[test]
fn human_readable_is_the_same_everywhere() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Host {
        Address(IpAddr),
        Name { name: String },
    }
    let address: IpAddr = "::1".parse().unwrap();
    as_json(address);
    as_json(vec![Host::Address(address), Host::Name { name: "x".to_owned() }]);
}

/// C20: the rest of serde's shapes.
#[test]
fn every_other_shape_arrives() {
    as_json(((), Unit, Newtype(3), [1_u8; 4]));
    as_json((Duration::from_nanos(5), Ok::<u8, String>(1), Err::<u8, String>("no".to_owned())));
    same(Cow::<str>::Owned("borrowed".to_owned()));
    same((Shared::new(vec![Range { min: None, max: Some(1) }]), Box::new(External::Unit)));
    same(vec![Colour::Red, Colour::Green, Colour::Red]);
    let json: serde_json::Value =
        serde_json::json!({"a": [1, -1, 1.5, null, true, {"b": "c"}], "d": {}});
    same(json);
    same("x".repeat(70_000));
    same((0..70_000_u32).collect::<Vec<_>>());
    same((0..20_u8).map(|n| (n, ())).collect::<BTreeMap<_, _>>());
}

/// C20: shared values and large blobs in what serde buffers and what it flattens.
#[test]
fn large_blobs_arrive_in_every_shape() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Carries {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        none: Option<u8>,
        blob: Option<Blob>,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Kept {
        One(Carries),
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flattened {
        #[serde(flatten)]
        carries: Carries,
    }
    let carries = || Carries { none: None, blob: Some(Blob::from(vec![7; 40_000])) };
    let encoded = Encoded::of(&carries()).unwrap();
    assert!(encoded.has_parts() && encoded.len() < 40_100);
    same(carries());
    same(Kept::One(carries()));
    same(Flattened { carries: carries() });
    same(Some(Shared::new(Some(carries()))));
}

/// A sequence or a map that announces what it doesn't give.
struct Liar {
    announced: usize,
    given: usize,
    is_map: bool,
}

impl Serialize for Liar {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.is_map {
            let mut map = to.serialize_map(Some(self.announced))?;
            for number in 0..self.given {
                map.serialize_entry(&number, &())?;
            }
            return map.end();
        }
        let mut seq = to.serialize_seq(Some(self.announced))?;
        for number in 0..self.given {
            seq.serialize_element(&number)?;
        }
        seq.end()
    }
}

/// C20: a lie about a length is an error of the sender, and no other value.
#[test]
fn a_lie_about_a_length_is_an_error_of_the_sender() {
    for is_map in [false, true] {
        for (announced, given) in [(2, 1), (1, 2), (0, 1)] {
            let error = Encoded::of(&(Liar { announced, given, is_map }, 5)).unwrap_err();
            assert!(
                matches!(&error, FrameError::Encode(why) if why.contains("announced")),
                "{error}"
            );
        }
        assert!(Encoded::of(&Liar { announced: 2, given: 2, is_map }).is_ok());
    }
}

/// C15, C20: what isn't a value of that type is an error, at every length it is cut to.
#[test]
fn what_is_cut_or_of_another_type_is_a_typed_error() {
    let sent = (
        vec![External::Struct { a: Some(1), b: vec![External::Unit] }],
        Range { min: None, max: None },
    );
    let bytes = value::to_bytes(&sent).unwrap();
    for length in 0..bytes.len() {
        let cut = value::from_bytes::<(Vec<External>, Range)>(&bytes[..length]);
        assert!(matches!(cut, Err(FrameError::Decode(_))), "{length}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(value::from_bytes::<(Vec<External>, Range)>(&longer).is_err());
    assert!(value::from_bytes::<Vec<u8>>(&bytes).is_err());
    assert!(value::from_bytes::<u8>(&value::to_bytes(&300).unwrap()).is_err());
    assert!(value::from_bytes::<(u8, u8)>(&value::to_bytes(&(1, 2, 3)).unwrap()).is_err());
    assert!(value::from_bytes::<External>(&value::to_bytes(&"Tuple").unwrap()).is_err());
    let bytes = value::to_bytes(&Blob::from(vec![1, 2, 3])).unwrap();
    assert_eq!(value::from_bytes::<[u8; 3]>(&bytes), Ok([1, 2, 3]));
    assert!(
        value::from_bytes::<[u8; 2]>(&bytes).is_err()
            && value::from_bytes::<(u8,)>(&bytes).is_err()
    );
    let mut deep = vec![0x91; 100_000];
    deep.push(0);
    assert!(value::from_bytes::<serde::de::IgnoredAny>(&deep).is_err(), "its nesting is bounded");
}

proptest! {
    /// C15: no bytes make the reader panic or take more memory than they have.
    #[test]
    fn any_bytes_are_a_value_or_a_typed_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _value = value::from_bytes::<serde_json::Value>(&bytes);
        let _value = value::from_bytes::<Vec<Untagged>>(&bytes);
        let _value = value::from_bytes::<External>(&bytes);
        let _value = value::from_bytes::<Flat>(&bytes);
    }
}

/// A name costs its bytes once in a value: a thousand structs take little more than without names.
#[test]
fn a_thousand_structs_pay_for_their_names_once() {
    #[derive(Serialize)]
    struct Row {
        customer_number: u32,
        unit_price: u32,
        is_delivered: bool,
        remark: Option<String>,
    }
    let row = |n| Row { customer_number: n, unit_price: n, is_delivered: false, remark: None };
    let rows: Vec<_> = (0..1000).map(row).collect();
    let plain = rmp_serde::to_vec(&rows).unwrap().len();
    let named = rmp_serde::to_vec_named(&rows).unwrap().len();
    let ours = value::to_bytes(&rows).unwrap().len();
    assert!(
        ours < plain + 5 * rows.len() + 100,
        "{plain} without names, {named} with, {ours} ours"
    );
}
