//! The engine in memory: how long a packet takes, by the number of connections and diversions; how
//! long a connection takes to come and go; how long a redirect keeps a worker from its packets.

use std::time::{Duration, Instant};

use benches::load::Load;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn translate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("translate");
    group.throughput(Throughput::Elements(1));
    for connections in [1_000, 1_000_000, 10_000_000] {
        let mut load = Load::new(connections, 10);
        group.bench_function(format!("{connections} connections"), |bencher| {
            bencher.iter_custom(|count| timed(|| load.translate(count as usize)));
        });
    }
    for diversions in [10, 1_000, 1_000_000] {
        let mut load = Load::new(1_000, diversions);
        group.bench_function(format!("{diversions} diversions"), |bencher| {
            bencher.iter_custom(|count| timed(|| load.translate(count as usize)));
        });
    }
}

fn create_and_expire(criterion: &mut Criterion) {
    const CONNECTIONS: u32 = 100_000;
    let mut group = criterion.benchmark_group("create and expire");
    group.sample_size(10);
    group.throughput(Throughput::Elements(u64::from(CONNECTIONS)));
    let mut load = Load::without_connections(CONNECTIONS, 10);
    group.bench_function(format!("{CONNECTIONS} connections"), |bencher| {
        bencher.iter(|| load.create_and_expire());
    });
}

/// A redirect is done in slices, between which packets are handled: what counts is the longest.
fn redirect(criterion: &mut Criterion) {
    const CONNECTIONS: u32 = 1_000_000;
    const SLICE: u32 = 1024;
    let mut group = criterion.benchmark_group("redirect");
    group.sample_size(10);
    let mut network = 2;
    let mut load = Load::new(CONNECTIONS, 10);
    group.bench_function(
        format!("longest slice of {CONNECTIONS} connections"),
        |bencher| {
            bencher.iter_custom(|count| {
                (0..count)
                    .map(|_| {
                        network = 5 - network;
                        load.redirect(network, SLICE)
                    })
                    .sum()
            });
        },
    );
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

criterion_group! {
    name = engine;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = translate, create_and_expire, redirect
}
criterion_main!(engine);
