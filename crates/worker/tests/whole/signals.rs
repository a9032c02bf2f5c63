//! Every signal that ends a process drains.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_messaging::api::community;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;
use xtask::worker::Worker;

use crate::setting::{Guild, Setting, community, eventually};

fn send(worker: &Worker, signal: Signal) -> Result<()> {
    kill_process(Pid::from_raw(i32::try_from(worker.id())?).unwrap(), signal)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_signal_that_ends_a_process_drains_under_load() -> Result<()> {
    let setting = Setting::new().await?;
    let staying = setting.configuration.elsewhere()?.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    publisher.publish(&Guild::new("tabr").join_guild()).await?;
    let community = client.community(community(&client, "tabr").await?);
    let answered = Arc::new(AtomicU64::new(0));
    let asking = tokio::spawn({
        let answered = Arc::clone(&answered);
        async move {
            loop {
                community.ask(&community::Stats {}).await?;
                answered.fetch_add(1, Ordering::SeqCst);
            }
            #[expect(unreachable_code, reason = "it says what the errors are")]
            anyhow::Ok(())
        }
    });
    for signal in
        [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2, Signal::ALARM]
    {
        let mut worker = setting.serve()?;
        let before = answered.load(Ordering::SeqCst);
        eventually("answers", async || answered.load(Ordering::SeqCst) > before + 20).await?;
        send(&worker, signal)?;
        ensure!(worker.wait()? == Some(0), "{signal:?}: {}", worker.log_tail());
        ensure!(worker.log_tail().contains("muster-worker has stopped"), "{signal:?}: {}", worker.log_tail());
        ensure!(!asking.is_finished(), "{signal:?}: a request failed");
    }
    asking.abort();
    ensure!(staying.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_drain_and_the_same_one_twice_does_not() -> Result<()> {
    let setting = Setting::new().await?;
    let mut worker = setting.serve()?;
    // A frozen server holds the drain.
    let nats = setting.services.nats.id().context("NATS is stopped")?;
    let nats = Pid::from_raw(nats.try_into()?).context("NATS has no process")?;
    kill_process(nats, Signal::STOP)?;
    send(&worker, Signal::HUP)?;
    sleep(Duration::from_millis(100)).await;
    send(&worker, Signal::HUP)?;
    sleep(Duration::from_millis(1500)).await;
    let told = Instant::now();
    send(&worker, Signal::TERM)?;
    let code = worker.wait()?;
    kill_process(nats, Signal::CONT)?;
    ensure!(code == Some(143), "{code:?}: {}", worker.log_tail());
    ensure!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    Ok(())
}
