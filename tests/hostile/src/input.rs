//! Inputs as programs: a list of actions, decoded from any bytes.

use arbitrary::{Arbitrary, Unstructured};

/// More actions than this find nothing that fewer do not.
const MOST_ACTIONS: usize = 200;

/// The actions that `bytes` stand for. Every input stands for some.
pub fn actions<'a, A: Arbitrary<'a>>(bytes: &'a [u8]) -> impl Iterator<Item = A> {
    let mut input = Unstructured::new(bytes);
    let next = move || {
        let more = !input.is_empty();
        more.then(|| A::arbitrary(&mut input).ok()).flatten()
    };
    std::iter::from_fn(next).take(MOST_ACTIONS)
}
