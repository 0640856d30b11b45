import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import { create } from "@bufbuild/protobuf";
import { connectNodeAdapter } from "@connectrpc/connect-node";

import { MarketDataService } from "./gen/marketprism/market/v1/market_data_service_pb.js";
import {
  type MarketEvent,
  MarketEventSchema,
  StreamState,
} from "./gen/marketprism/market/v1/market_event_pb.js";
import { connectGrpcWeb } from "./grpcweb.js";
import { type Connection, Keeper } from "./keeper.js";

const EXCHANGE = "binance";
const SYMBOL = "BTC-USDT";

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

/** Collects garbage for a while, so that nothing lives on that is only held by chance. */
async function collectMuch(): Promise<void> {
  for (let count = 0; count < 10; count += 1) {
    collectGarbage();
    await sleep(10);
  }
}

async function waitUntil(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 5000;
  while (!condition()) {
    assert(Date.now() < deadline, `it did not happen within 5 s that ${what}`);
    await sleep(5);
  }
}

const streamIsOpen = create(MarketEventSchema, {
  event: { case: "streamStatus", value: { state: StreamState.OPEN } },
});
const updateOfNoBook = create(MarketEventSchema, {
  event: {
    case: "orderBookUpdate",
    value: { exchange: EXCHANGE, symbol: SYMBOL, epoch: 1n, sequence: 7n },
  },
});

/** Serves streams that bring these events and then nothing, and counts them. */
async function serve(context: TestContext, events: MarketEvent[]) {
  const served = { baseUrl: "", opened: 0, ended: 0 };
  const server = createServer(
    connectNodeAdapter({
      routes: ({ service }) =>
        service(MarketDataService, {
          async *streamOrderBook(_request, { signal }) {
            served.opened += 1;
            yield { events };
            await once(signal, "abort");
            served.ended += 1;
          },
        }),
    }),
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  context.after(() => {
    server.close();
    server.closeAllConnections();
  });
  served.baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return served;
}

/** Keeps a book until the test ends, and gives how to stop it and what it told. */
function keep(context: TestContext, connect: () => Connection, heartbeatMs: number) {
  const stop = new AbortController();
  const kept = { stop, events: 0, notices: [] as string[], ended: Promise.resolve() };
  const keeper = new Keeper({
    exchange: EXCHANGE,
    symbol: SYMBOL,
    heartbeatMs,
    connect,
    notice: (text) => kept.notices.push(text),
    onEvent: () => (kept.events += 1),
  });
  kept.ended = keeper.keep(stop.signal);
  context.after(() => stop.abort());
  return kept;
}

const lost = (why: string) => (text: string) => text.startsWith(`lost ${why}`);

test("a stream over gRPC-Web ends when its keeper is stopped", { timeout: 20_000 }, async (context) => {
  const served = await serve(context, [streamIsOpen]);
  const kept = keep(context, () => connectGrpcWeb(served.baseUrl), 60_000);
  await waitUntil("an event came", () => kept.events > 0);
  await collectMuch();
  kept.stop.abort();
  await kept.ended;
  await waitUntil("the server saw the stream end", () => served.ended === 1);
});

test("a silent stream over gRPC-Web is told and ended", { timeout: 20_000 }, async (context) => {
  const served = await serve(context, [streamIsOpen]);
  const kept = keep(context, () => connectGrpcWeb(served.baseUrl), 200);
  await waitUntil("an event came", () => kept.events > 0);
  await collectMuch();
  await waitUntil("silence was told", () => kept.notices.some(lost("SILENT")));
  kept.stop.abort();
  await kept.ended;
  await waitUntil("the server saw every stream end", () => served.ended === served.opened);
});

test("a stream that is out of step is told and ended", { timeout: 20_000 }, async (context) => {
  const served = await serve(context, [streamIsOpen, updateOfNoBook]);
  const kept = keep(context, () => connectGrpcWeb(served.baseUrl), 60_000);
  await waitUntil("the book was out of step", () => kept.notices.some(lost("OUT_OF_STEP")));
  kept.stop.abort();
  await kept.ended;
  await waitUntil("the server saw every stream end", () => served.ended === served.opened);
});

/** A transport that hears of nothing and never answers. */
const deaf: Connection = {
  transport: { unary: () => new Promise(() => {}), stream: () => new Promise(() => {}) },
  close: () => {},
};

test("a keeper can be stopped whatever its transport does", { timeout: 20_000 }, async (context) => {
  const kept = keep(context, () => deaf, 60_000);
  kept.stop.abort();
  await kept.ended;
});

test("a keeper tells silence whatever its transport does", { timeout: 20_000 }, async (context) => {
  const kept = keep(context, () => deaf, 100);
  await waitUntil("silence was told again", () => kept.notices.filter(lost("SILENT")).length > 1);
});
