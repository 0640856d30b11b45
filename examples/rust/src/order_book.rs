//! Keeps the book of one instrument from a stream of market events.
//!
//! No I/O: it takes the events of StreamOrderBook, StreamMarketData or Subscribe one after the other
//! and says what may be believed. Two rules keep a book right: a snapshot replaces everything; an
//! update is right only if it has the same epoch and the next sequence.

use std::collections::HashSet;
use std::error::Error;
use std::fmt::{self, Write};

use sha2::{Digest, Sha256};

use crate::contracts::marketprism::market::v1::market_event::Event;
use crate::contracts::marketprism::market::v1::{
    MarketEvent, OrderBookSnapshot, OrderBookState, OrderBookUpdate, PriceLevel, StreamState,
    StreamStatus,
};
use crate::decimal;

const DIGEST_DEPTH: usize = 50;

/// A price and the quantity resting there, both canonical decimal strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    pub price: String,
    pub quantity: String,
}

/// An update does not continue the book. The book is empty then: what was held must not be used, and
/// only a snapshot gives a book again.
#[derive(Debug)]
pub struct OutOfStep {
    /// Epoch and sequence at which the book stood; epoch 0 when there was none.
    pub stood_at: (u64, u64),
    /// Epoch and sequence of the update.
    pub got: (u64, u64),
}

impl fmt::Display for OutOfStep {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((epoch, sequence), (got_epoch, got)) = (self.stood_at, self.got);
        write!(
            out,
            "the book stands at {epoch}/{sequence}, and update {got_epoch}/{got} does not continue it"
        )
    }
}

impl Error for OutOfStep {}

/// The order book of one instrument; events of all others are ignored.
pub struct OrderBook {
    exchange: String,
    symbol: String,
    epoch: u64,
    sequence: u64,
    bids: Side,
    asks: Side,
    state: OrderBookState,
    stream_open: bool,
    interrupted: HashSet<String>,
}

impl OrderBook {
    pub fn new(exchange: &str, symbol: &str) -> Self {
        Self {
            exchange: exchange.to_owned(),
            symbol: symbol.to_owned(),
            epoch: 0,
            sequence: 0,
            bids: Side::new(true, ""),
            asks: Side::new(false, ""),
            state: OrderBookState::Unspecified,
            stream_open: false,
            interrupted: HashSet::new(),
        }
    }

    /// Epoch of the book, 0 while there is none.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Number of the last update contained.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What the server told last; unspecified while it has told nothing in this stream.
    #[cfg_attr(not(test), allow(dead_code))]
    pub fn state(&self) -> OrderBookState {
        self.state
    }

    /// Whether the book equals the venue's: there is one, the server says that it is in step, and
    /// the stream that would tell otherwise is open.
    pub fn is_trusted(&self) -> bool {
        let is_heard = self.stream_open && self.interrupted.is_empty();
        self.epoch != 0 && is_heard && self.state == OrderBookState::Synced
    }

    /// The bids, highest first. Beyond the horizon that the venue publishes a book is unknown, so
    /// nothing of that is given.
    pub fn bids(&self) -> &[Level] {
        self.bids.known()
    }

    /// The asks, lowest first.
    pub fn asks(&self) -> &[Level] {
        self.asks.known()
    }

    /// The fingerprint of the best 50 levels a side by which two books are compared.
    pub fn digest(&self) -> String {
        let mut text = String::new();
        for (side, levels) in [("bid", self.bids()), ("ask", self.asks())] {
            for Level { price, quantity } in levels.iter().take(DIGEST_DEPTH) {
                let _ = writeln!(text, "{side} {price} {quantity}");
            }
        }
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Where the book stands, quantity and price of the best bid, price and quantity of the best ask.
    pub fn top(&self) -> String {
        let nothing = Level { price: "-".into(), quantity: "-".into() };
        let bid = self.bids().first().unwrap_or(&nothing);
        let ask = self.asks().first().unwrap_or(&nothing);
        format!(
            "{} {} {}/{}  {} @ {} | {} @ {}",
            self.exchange,
            self.symbol,
            self.epoch,
            self.sequence,
            bid.quantity,
            bid.price,
            ask.price,
            ask.quantity
        )
    }

    /// The stream is over. The levels stay, because a new stream may go on where they stand; nothing
    /// is known of the venue until it does.
    pub fn disconnected(&mut self) {
        self.stream_open = false;
        self.interrupted.clear();
        self.state = OrderBookState::Unspecified;
    }

    /// Takes the next event. Fails when an update does not continue the book; a new stream is needed
    /// then, without a resume point.
    pub fn apply(&mut self, event: &MarketEvent) -> Result<(), OutOfStep> {
        match &event.event {
            Some(Event::OrderBookSnapshot(told)) if self.is_mine(&told.exchange, &told.symbol) => {
                self.replace(told);
            }
            Some(Event::OrderBookUpdate(told)) if self.is_mine(&told.exchange, &told.symbol) => {
                return self.update(told);
            }
            Some(Event::OrderBookStatus(told)) if self.is_mine(&told.exchange, &told.symbol) => {
                self.state = told.state();
            }
            Some(Event::StreamStatus(told)) if self.is_of_me(told) => self.follow(told),
            _ => {}
        }
        Ok(())
    }

    fn is_mine(&self, exchange: &str, symbol: &str) -> bool {
        exchange == self.exchange && symbol == self.symbol
    }

    /// Whether a status speaks of the book: of the whole stream, of its venue or of its instrument.
    fn is_of_me(&self, status: &StreamStatus) -> bool {
        ["", &self.exchange].contains(&status.exchange.as_str())
            && ["", &self.symbol].contains(&status.symbol.as_str())
    }

    fn follow(&mut self, status: &StreamStatus) {
        // What is interrupted stays so until the same scope is open again.
        let scope = format!("{}/{}", status.exchange, status.symbol);
        match status.state() {
            StreamState::Open => {
                self.stream_open = true;
                self.interrupted.remove(&scope);
            }
            StreamState::Interrupted => {
                self.interrupted.insert(scope);
            }
            StreamState::Ended => self.stream_open = false,
            _ => {}
        }
    }

    fn replace(&mut self, snapshot: &OrderBookSnapshot) {
        self.epoch = snapshot.epoch;
        self.sequence = snapshot.sequence;
        self.bids = Side::new(true, &snapshot.bid_horizon);
        self.asks = Side::new(false, &snapshot.ask_horizon);
        self.bids.apply(&snapshot.bids);
        self.asks.apply(&snapshot.asks);
    }

    fn update(&mut self, update: &OrderBookUpdate) -> Result<(), OutOfStep> {
        let stood_at = (self.epoch, self.sequence);
        let got = (update.epoch, update.sequence);
        // A merged update stands for all from its first one on.
        let first =
            if update.first_sequence == 0 { update.sequence } else { update.first_sequence };
        let continues = update.epoch == self.epoch && first == self.sequence.wrapping_add(1);
        if self.epoch == 0 || !continues {
            *self = Self::new(&self.exchange, &self.symbol);
            return Err(OutOfStep { stood_at, got });
        }
        self.sequence = update.sequence;
        self.bids.apply(&update.bids);
        self.asks.apply(&update.asks);
        Ok(())
    }
}

/// One side of a book, best level first.
struct Side {
    levels: Vec<Level>,
    descending: bool,
    horizon: String,
}

impl Side {
    fn new(descending: bool, horizon: &str) -> Self {
        Self { levels: Vec::new(), descending, horizon: horizon.to_owned() }
    }

    fn apply(&mut self, changes: &[PriceLevel]) {
        for PriceLevel { price, quantity } in changes {
            let place = self.levels.partition_point(|held| self.order(&held.price, price).is_lt());
            let found = self.levels.get(place).is_some_and(|held| held.price == *price);
            match (quantity.as_str(), found) {
                ("0", true) => {
                    self.levels.remove(place);
                }
                // Deleting a level that is not there is normal.
                ("0", false) => {}
                (_, true) => self.levels[place].quantity.clone_from(quantity),
                (_, false) => {
                    let level = Level { price: price.clone(), quantity: quantity.clone() };
                    self.levels.insert(place, level);
                }
            }
        }
    }

    fn known(&self) -> &[Level] {
        if self.horizon.is_empty() {
            return &self.levels;
        }
        let within = |held: &Level| self.order(&held.price, &self.horizon).is_le();
        &self.levels[..self.levels.partition_point(within)]
    }

    /// `Less` when price `a` is better than price `b`.
    fn order(&self, a: &str, b: &str) -> std::cmp::Ordering {
        if self.descending { decimal::compare(b, a) } else { decimal::compare(a, b) }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use prost::Message;
    use serde_json::{Value, json};

    use super::{Level, MarketEvent, OrderBook};

    const VECTORS: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/order_book.json"));

    fn pairs(levels: &[Level]) -> Vec<[&str; 2]> {
        levels.iter().map(|level| [level.price.as_str(), level.quantity.as_str()]).collect()
    }

    /// Gives one step to the book, and tells whether it fell out of step.
    fn take(book: &mut OrderBook, step: &Value) -> bool {
        let Some(event) = step["event"].as_str() else {
            book.disconnected();
            return false;
        };
        let bytes = STANDARD.decode(event).expect("base64");
        book.apply(&MarketEvent::decode(bytes.as_slice()).expect("a MarketEvent")).is_err()
    }

    #[test]
    fn the_book_passes_the_vectors() {
        let given: Value = serde_json::from_str(VECTORS).expect("JSON");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let vectors = given["vectors"].as_array().expect("vectors");
        assert!(!vectors.is_empty());
        for vector in vectors {
            let mut book = OrderBook::new(&text(&given["exchange"]), &text(&given["symbol"]));
            for (number, step) in vector["steps"].as_array().expect("steps").iter().enumerate() {
                let out_of_step = take(&mut book, step);
                let state = book.state().as_str_name().trim_start_matches("ORDER_BOOK_STATE_");
                let held = json!({
                    "out_of_step": out_of_step,
                    "state": state,
                    "trusted": book.is_trusted(),
                    "epoch": book.epoch().to_string(),
                    "sequence": book.sequence().to_string(),
                    "bids": pairs(book.bids()),
                    "asks": pairs(book.asks()),
                    "digest": book.digest(),
                });
                let (name, rule) = (&vector["name"], &vector["rule"]);
                assert_eq!(held, step["expect"], "{name}, step {number}: {rule}");
            }
        }
    }
}
