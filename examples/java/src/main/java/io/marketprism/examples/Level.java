package io.marketprism.examples;

/** A price and the quantity resting there, both canonical decimal strings. */
record Level(String price, String quantity) {}
