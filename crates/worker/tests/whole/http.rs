//! The HTTP port, which harms nobody whatever is done there.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use xtask::worker::Worker;

use crate::setting::{Setting, eventually};

fn has(worker: &Worker, text: &str) -> bool {
    worker.get("/metrics").is_ok_and(|(_, metrics)| metrics.contains(text))
}

/// Holds a connection for as long as it may, and then another a second later: half-open, dripping, or never reading.
async fn hold(address: SocketAddr, n: usize) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            match n % 3 {
                0 => {
                    let _ = stream.write_all(b"GET /livez HT").await;
                    let _ = stream.read(&mut [0]).await;
                }
                1 => {
                    let drops =
                        b"GET /metrics HTTP/1.1\r\nhost: x\r\nx: ".iter().chain(std::iter::repeat(&b'x'));
                    for drop in drops {
                        if stream.write_all(&[*drop]).await.is_err() {
                            break;
                        }
                        sleep(Duration::from_secs(1)).await;
                    }
                }
                _ => {
                    let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
                    sleep(Duration::from_secs(3)).await;
                }
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_held_open_delay_no_probe_no_rotation_and_no_stop() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let mut holding = JoinSet::new();
    for n in 0..1000 {
        holding.spawn(hold(worker.address, n));
    }
    sleep(Duration::from_secs(2)).await;
    let mut took = Vec::new();
    for _ in 0..31 {
        let asked = Instant::now();
        ensure!(worker.get("/livez")?.0 == 200);
        took.push(asked.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    // Of a machine that runs everything else of this suite beside, some are late.
    took.sort();
    ensure!(
        took[15] < Duration::from_millis(100) && took[30] < Duration::from_secs(1),
        "/livez took {took:?}"
    );
    setting.services.authority.client("muster-worker")?;
    eventually("a rotation", async || has(&worker, "muster_rotations_total{outcome=\"taken\"} 1\n")).await?;
    let open = fs::read_dir(format!("/proc/{}/fd", worker.id()))?.count();
    ensure!(open < 200, "{open} descriptors are open");
    let told = Instant::now();
    ensure!(worker.stop()? == Some(0));
    ensure!(told.elapsed() < Duration::from_secs(5), "the stop took {:?}", told.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_and_its_answer_are_bounded_in_time_and_size() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    // By itself it stays until its time is over, and no longer.
    let mut half_open = TcpStream::connect(worker.address).await?;
    half_open.write_all(b"GET /livez HT").await?;
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = half_open.read_to_end(&mut rest).await;
    let took = begun.elapsed();
    ensure!(took > Duration::from_secs(3) && took < Duration::from_secs(9), "closed after {took:?}");

    let answer = async |request: Vec<u8>| -> Result<String> {
        let mut stream = TcpStream::connect(worker.address).await?;
        // It may answer and close before all was sent.
        let _ = stream.write_all(&request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let long = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(20_000));
    let many = format!("GET /livez HTTP/1.1\r\n{}\r\n", "x: x\r\n".repeat(1000));
    for (request, wanted) in [
        (long.into_bytes(), "431"),
        (many.into_bytes(), "431"),
        (b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\nx".to_vec(), "405"),
        (b"GET /livez?x=y HTTP/1.0\r\n\r\n".to_vec(), "200"),
        (b"HEAD /livez HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), "200"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), "404"),
    ] {
        let said = answer(request).await?;
        ensure!(said.split(' ').nth(1) == Some(wanted), "{wanted}: {said}");
    }
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_listened_on_is_named_with_its_key() -> Result<()> {
    let setting = Setting::new().await?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    for (address, code) in [(taken.as_str(), 1), ("192.0.2.1:8080", 64)] {
        let configuration = setting.configuration.with("MUSTER__HTTP__ADDRESS", address);
        let output = configuration.run("serve").await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code), "{said}");
        let last = said.lines().last().unwrap_or_default();
        ensure!(
            last.starts_with(&format!("muster-worker: {address} cannot be listened on, as http.address ")),
            "{said}"
        );
    }
    Ok(())
}

/// Leaves the worker so many descriptors more than it has open.
async fn leave(worker: &Worker, descriptors: u64) -> Result<()> {
    let open = || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{}/fd", worker.id()))?.count());
    // The connections of earlier requests are closed once the number stays.
    let mut number = open()?;
    let mut same = 0;
    let until = Instant::now() + Duration::from_secs(30);
    while same < 10 {
        ensure!(Instant::now() < until, "the worker goes on opening files: {number} now");
        sleep(Duration::from_millis(20)).await;
        let before = std::mem::replace(&mut number, open()?);
        same = if before == number { same + 1 } else { 0 };
    }
    let open = u64::try_from(number)?;
    let pid = Pid::from_raw(i32::try_from(worker.id())?);
    let limit = Rlimit { current: Some(open + descriptors), maximum: Some(20_000) };
    prlimit(pid, Resource::Nofile, limit)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn used_up_descriptors_show_in_readiness_and_are_not_blamed_on_a_file() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let log = || fs::read_to_string(&worker.log).unwrap_or_default();
    leave(&worker, 0).await?;
    let seen = async || worker.get("/readyz").is_ok_and(|(_, body)| body.contains("\"descriptors\":false"));
    eventually("readiness to say so", seen).await?;
    for _ in 0..20 {
        ensure!(worker.get("/livez")?.0 == 200);
    }
    ensure!(has(&worker, "muster_ready{part=\"descriptors\"} 0\n"));
    sleep(Duration::from_secs(5)).await;
    ensure!(
        has(&worker, "muster_rotations_total{outcome=\"refused\"} 0\n"),
        "no file has changed: {}",
        log()
    );
    // One is enough to look at a file, and not to connect.
    leave(&worker, 1).await?;
    setting.services.authority.client("muster-worker")?;
    // The log is asked, for a request would take the one that is left.
    eventually("a refused rotation", async || log().contains("are refused")).await.with_context(log)?;
    let refusal = log().lines().find(|line| line.contains("are refused")).unwrap_or_default().to_owned();
    ensure!(refusal.contains("the file descriptors are used up"), "{refusal}");
    leave(&worker, 200).await?;
    ensure!(has(&worker, "muster_rotations_total{outcome=\"refused\"} 1\n"));
    eventually("readiness", async || worker.get("/readyz").is_ok_and(|(status, _)| status == 200)).await?;
    ensure!(log().lines().count() < 100, "{}", log());
    ensure!(worker.stop()? == Some(0));
    Ok(())
}
