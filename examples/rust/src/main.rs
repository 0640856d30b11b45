//! Keeps one order book over gRPC, and shows its top whenever it may be believed.
//!
//!     cargo run -- --exchange binance --symbol BTC-USDT --address 127.0.0.1:8080
//!
//! What happens to the book and the connection is told on stderr.

mod decimal;
mod keeper;
mod order_book;

/// What build.rs made of the contracts.
#[allow(dead_code, clippy::all, clippy::pedantic)]
mod contracts {
    include!(concat!(env!("OUT_DIR"), "/contracts.rs"));
}

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use contracts::marketprism::market::v1::MarketEvent;
use contracts::marketprism::market::v1::market_event::Event;
use keeper::{Keeper, Observer, Wanted};
use order_book::{Level, OrderBook};

const SHOWN_AT_MOST_EVERY: Duration = Duration::from_millis(100);
const JSON_DEPTH: usize = 50;

/// Keeps one order book over gRPC, and shows its top whenever it may be believed.
#[derive(Parser)]
struct Options {
    /// Where the mesh listens, host:port
    #[arg(long, default_value = "127.0.0.1:8080")]
    address: String,
    /// Venue id
    #[arg(long, default_value = "binance")]
    exchange: String,
    /// Canonical symbol
    #[arg(long, default_value = "BTC-USDT")]
    symbol: String,
    /// End after so long; 0: at Ctrl-C
    #[arg(long, default_value_t = 0.0)]
    seconds: f64,
    /// Ask for a heartbeat after so long without an event
    #[arg(long, default_value_t = 2000)]
    heartbeat_ms: u64,
    /// Print a fingerprint of the book after every change
    #[arg(long)]
    digests: bool,
    /// Print the book as a line of JSON at the end
    #[arg(long)]
    json: bool,
}

struct Terminal {
    digests: bool,
    shown: Option<Instant>,
    was_trusted: bool,
}

impl Observer for Terminal {
    fn on_event(&mut self, book: &OrderBook, event: Option<&MarketEvent>) {
        let changed = matches!(
            event.and_then(|event| event.event.as_ref()),
            Some(Event::OrderBookSnapshot(_) | Event::OrderBookUpdate(_))
        );
        if changed && self.digests {
            println!("digest {} {} {}", book.epoch(), book.sequence(), book.digest());
        }
        let became = book.is_trusted() && !self.was_trusted;
        self.was_trusted = book.is_trusted();
        let is_due = self.shown.is_none_or(|shown| shown.elapsed() >= SHOWN_AT_MOST_EVERY);
        if became || book.is_trusted() && changed && is_due {
            self.shown = Some(Instant::now());
            println!("{}", book.top());
        }
    }

    fn notice(&mut self, text: &str) {
        eprintln!("-- {text}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let wanted = Wanted {
        address: options.address,
        exchange: options.exchange.clone(),
        symbol: options.symbol.clone(),
        heartbeat: Duration::from_millis(options.heartbeat_ms),
    };
    let terminal = Terminal { digests: options.digests, shown: None, was_trusted: false };
    let mut keeper = Keeper::new(wanted, terminal);
    let refused = tokio::select! {
        why = keeper.keep() => Some(why),
        () = told_to_stop() => None,
        () = sleep(Duration::from_secs_f64(options.seconds)), if options.seconds > 0.0 => None,
    };
    if options.json {
        let book = &keeper.book;
        let line = json!({
            "exchange": options.exchange,
            "symbol": options.symbol,
            "trusted": book.is_trusted(),
            "epoch": book.epoch().to_string(),
            "sequence": book.sequence().to_string(),
            "bids": pairs(book.bids()),
            "asks": pairs(book.asks()),
            "reconnects": keeper.reconnects,
        });
        println!("{line}");
    }
    if let Some(why) = refused {
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Waits for Ctrl-C or a request to end.
async fn told_to_stop() {
    let mut terminate = signal(SignalKind::terminate()).expect("the runtime handles signals");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

fn pairs(levels: &[Level]) -> Vec<[&str; 2]> {
    let best = levels.iter().take(JSON_DEPTH);
    best.map(|level| [level.price.as_str(), level.quantity.as_str()]).collect()
}
