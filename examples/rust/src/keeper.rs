//! Keeps one book over a connection that may break at any time.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::contracts::marketprism::market::v1::market_data_service_client::MarketDataServiceClient;
use crate::contracts::marketprism::market::v1::market_event::Event;
use crate::contracts::marketprism::market::v1::{
    MarketEvent, ResumePoint, StreamOrderBookRequest, StreamState,
};
use crate::order_book::{OrderBook, OutOfStep};

/// How many heartbeats may fail to come until the stream counts as dead.
const HEARTBEATS_MISSED: u32 = 3;
const SHORTEST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What is to be kept, and where from.
pub struct Wanted {
    /// Where the mesh listens, host:port.
    pub address: String,
    pub exchange: String,
    pub symbol: String,
    /// Ask for a heartbeat after so long without an event, 100 ms to 60 s.
    pub heartbeat: Duration,
}

/// Who is told what happens.
pub trait Observer {
    /// After every event that the book took, and without one when the stream broke.
    fn on_event(&mut self, book: &OrderBook, event: Option<&MarketEvent>);
    /// What a person should know.
    fn notice(&mut self, text: &str);
}

/// Why a stream ended.
#[derive(Debug)]
pub enum Ended {
    ByServer,
    OutOfStep(OutOfStep),
    Refused(Status),
    Silent(Duration),
    Unreachable(tonic::transport::Error),
}

impl Ended {
    /// Whether the same request will be refused again.
    fn is_permanent(&self) -> bool {
        use Code::{InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unimplemented};
        let Self::Refused(status) = self else { return false };
        [InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unimplemented]
            .contains(&status.code())
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ByServer => write!(out, "END: the server ended the stream"),
            Self::OutOfStep(why) => write!(out, "OUT_OF_STEP: {why}"),
            Self::Refused(status) => write!(out, "{:?}: {}", status.code(), status.message()),
            Self::Silent(limit) => write!(out, "SILENT: nothing came for {} ms", limit.as_millis()),
            Self::Unreachable(why) => write!(out, "Unavailable: {why}"),
        }
    }
}

pub struct Keeper<O> {
    pub book: OrderBook,
    pub reconnects: u64,
    wanted: Wanted,
    observer: O,
}

impl<O: Observer> Keeper<O> {
    pub fn new(wanted: Wanted, observer: O) -> Self {
        let book = OrderBook::new(&wanted.exchange, &wanted.symbol);
        Self { book, reconnects: 0, wanted, observer }
    }

    /// Keeps the book until it is dropped; returns when the server says that asking again cannot
    /// help.
    pub async fn keep(&mut self) -> Ended {
        let mut delay = SHORTEST_DELAY;
        loop {
            let mut heard = false;
            let Err(why) = self.follow(&mut heard).await;
            self.book.disconnected();
            self.observer.on_event(&self.book, None);
            if why.is_permanent() {
                return why;
            }
            if heard {
                delay = SHORTEST_DELAY;
            }
            // A random part, so that a thousand clients of one server do not come back at once.
            let pause = delay.mul_f64(0.5 + fastrand::f64() / 2.0);
            self.observer
                .notice(&format!("lost {why}; connecting again in {} ms", pause.as_millis()));
            delay = LONGEST_DELAY.min(2 * delay);
            sleep(pause).await;
            self.reconnects += 1;
        }
    }

    /// Reads one stream to its end, over a connection of its own: one that is cut without a word
    /// looks alive for minutes, and the next stream must not be put on it.
    async fn follow(&mut self, heard: &mut bool) -> Result<Never, Ended> {
        // Whoever hears nothing for some heartbeats is cut off, whatever TCP believes.
        let limit = HEARTBEATS_MISSED * self.wanted.heartbeat;
        let silent = |_| Ended::Silent(limit);
        let mut stream = timeout(limit, async {
            let channel = Endpoint::from_shared(format!("http://{}", self.wanted.address))
                .map_err(|why| Ended::Refused(Status::invalid_argument(why.to_string())))?
                .connect()
                .await
                .map_err(Ended::Unreachable)?;
            let response = MarketDataServiceClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .stream_order_book(self.request())
                .await
                .map_err(Ended::Refused)?;
            Ok(response.into_inner())
        })
        .await
        .map_err(silent)??;
        loop {
            let message = timeout(limit, stream.message()).await.map_err(silent)?;
            let response = message.map_err(Ended::Refused)?.ok_or(Ended::ByServer)?;
            *heard = true;
            for event in &response.events {
                self.tell(event);
                self.book.apply(event).map_err(Ended::OutOfStep)?;
                self.observer.on_event(&self.book, Some(event));
            }
        }
    }

    fn request(&self) -> StreamOrderBookRequest {
        let resume = (self.book.epoch() != 0)
            .then(|| ResumePoint { epoch: self.book.epoch(), sequence: self.book.sequence() });
        let heartbeat = self.wanted.heartbeat;
        StreamOrderBookRequest {
            exchange: self.wanted.exchange.clone(),
            symbol: self.wanted.symbol.clone(),
            resume,
            heartbeat_interval: Some(prost_types::Duration {
                seconds: heartbeat.as_secs().cast_signed(),
                nanos: heartbeat.subsec_nanos().cast_signed(),
            }),
        }
    }

    /// Says what a person should know of an event.
    fn tell(&mut self, event: &MarketEvent) {
        let text = match &event.event {
            Some(Event::OrderBookSnapshot(told)) => {
                let reason = told.reason().as_str_name().trim_start_matches("SNAPSHOT_REASON_");
                format!("snapshot {}/{} {reason}", told.epoch, told.sequence)
            }
            Some(Event::OrderBookStatus(told)) => {
                let state = told.state().as_str_name().trim_start_matches("ORDER_BOOK_STATE_");
                let reason = told.reason().as_str_name().trim_start_matches("ORDER_BOOK_REASON_");
                format!("book {state} {reason} {}", told.detail)
            }
            Some(Event::StreamStatus(told)) => match told.state() {
                StreamState::Heartbeat => return,
                StreamState::Lagging => {
                    format!("stream LAGGING: {} events were left out", told.dropped_events)
                }
                state => {
                    let state = state.as_str_name().trim_start_matches("STREAM_STATE_");
                    format!("stream {state} {} {}", told.reason, told.message)
                }
            },
            _ => return,
        };
        self.observer.notice(text.trim_end());
    }
}

/// A stream never ends without a reason.
enum Never {}
