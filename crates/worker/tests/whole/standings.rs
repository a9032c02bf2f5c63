//! The example `standings` in a real browser: what people see is what the service answers.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use muster_domain::{BadgeKind, Event, MemberEffect, Nym, SearchQuery, UserId};
use muster_messaging::api::{Profile, Rows, admin, profiles};
use muster_messaging::client::CommunityClient;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use xtask::services::get;

use crate::browser::{self, Browser};
use crate::examples::example;
use crate::setting::{Guild, PATIENCE, Setting, community, eventually};

const DESKTOP: (u32, u32) = (1100, 820);
const PHONE: (u32, u32) = (390, 844);
/// Names as anyone may type them.
const HOSTILE: [&str; 3] =
    ["<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "\"'><svg onload=alert(3)> &lt;"];
const NAMES: [&str; 12] = [
    "Muad’Dib",
    "Chani",
    "Stilgar",
    "Lady Jessica",
    "Alia of the Knife",
    "Gurney Halleck",
    "Duncan",
    "Irulan",
    "Liet",
    "Harah",
    "Shishakli",
    "Otheym",
];
/// The rows of the table as text, each of a rank, a name, a tier, badges, and a score.
const ROWS: &str = "[...document.querySelectorAll('tbody tr')].map(row => \
    ['rank', 'who', 'tier', 'count', 'score'].map(name => row.querySelector('td.' + name).textContent))";
/// Whatever is wider than the page, and whatever text has less contrast than 4.5, by the formula of WCAG 2.
const LOOKS: &str = include_str!("looks.js");

fn member(guild: &mut Guild, user: &str, nym: &str, conviction: i64) -> [Event; 2] {
    let username = Nym::parse(nym).ok();
    [guild.member(user, MemberEffect::Join { username }), guild.score(user, conviction)]
}

/// A row as the page must show it.
fn row(rank: u64, profile: &Profile) -> Value {
    let tier = profile.tier.as_ref().map_or("no tier", |tier| tier.as_str());
    let unit = if profile.badge_count == 1 { "badge" } else { "badges" };
    let count = format!("{} {unit}", profile.badge_count);
    json!([rank.to_string(), profile.nym, tier, count, grouped(profile.conviction.get())])
}

fn grouped(number: i64) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}

async fn ranked(tabr: &CommunityClient, limit: u32) -> Result<Vec<Value>> {
    let page = tabr.ask(&profiles::Ranked::first(limit)).await?;
    Ok(page.items.iter().map(|member| row(member.rank.get(), &member.profile)).collect())
}

/// Keeps all that a page announces: what comes later takes the place of what came before.
const LISTEN: &str = "window.announced = ''; new MutationObserver(() => {
    window.announced += document.getElementById('news').textContent + '\\n';
}).observe(document.getElementById('news'), { childList: true })";

/// What has the focus, in short.
fn focused(browser: &mut Browser) -> Result<String> {
    let text = browser.eval(
        "document.activeElement.id || document.activeElement.className || document.activeElement.localName",
    )?;
    Ok(text.as_str().unwrap_or_default().to_owned())
}

/// Keeps a picture where the tests' files are.
fn keep(browser: &mut Browser, name: &str) -> Result<Vec<u8>> {
    let picture = browser.picture()?;
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("standings-{name}.png")), &picture)?;
    Ok(picture)
}

/// Sends a request as it stands; answers what comes until the connection is closed, or behind the head as much as came with it.
async fn raw(address: SocketAddr, request: &str) -> Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while answer.len() < 4000 && !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.context("no whole head came")??;
        if read == 0 {
            break;
        }
    }
    Ok((stream, String::from_utf8_lossy(&answer).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn people_see_the_standings_as_they_are() -> Result<()> {
    let Some(program) = browser::program("the pages of `standings` in a browser")? else { return Ok(()) };
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("881207955029110855");
    let mut events = vec![guild.join_guild()];
    let scores = [48_210, 41_905, 37_440, 37_440, 29_118, 21_730, 18_006, 9_422, 6_105, 3_977, 2_450, 1_204];
    for (number, (name, score)) in NAMES.iter().zip(scores).enumerate() {
        events.extend(member(&mut guild, &format!("u{number}"), name, score));
    }
    for (number, name) in HOSTILE.iter().enumerate() {
        events.extend(member(&mut guild, &format!("h{number}"), name, 900 - i64::try_from(number)?));
    }
    for number in 0..60 {
        events.extend(member(
            &mut guild,
            &format!("f{number}"),
            &format!("Fremen {number}"),
            700 - 10 * number,
        ));
    }
    let total = u64::try_from(events.len())?;
    publisher.publish_all(events, |_| {}).await?;
    eventually("the events' effect", || async { worker.event_counts().is_ok_and(|c| c.applied == total) })
        .await?;
    let tabr = client.community(community(&client, "881207955029110855").await?);
    let id = async |user: &str| -> Result<_> {
        Ok(tabr.ask(&profiles::Get::UserId(UserId::parse(user)?)).await?.profile.profile_id)
    };
    let held = [
        ("u0", &["water bearer", "first ride", "<b>bold</b>"][..]),
        ("u1", &["first ride", "water bearer"]),
        ("u2", &["first ride"]),
        ("u5", &["first ride"]),
    ];
    for (user, kinds) in held {
        for kind in kinds {
            let kind = BadgeKind::parse(*kind)?;
            let award =
                admin::AwardBadge { profile_id: id(user).await?, kind, reason: None, awarded_by: None };
            tabr.ask(&award).await?;
        }
    }

    let configuration = example(&setting, "standings", "881207955029110855", tabr.id()).await?;
    let standings = configuration.serve(&setting.services)?;
    let address = standings.address;
    let at = |path: &str| format!("http://{address}{path}");

    // Without script: all of it, and what is typed is text.
    let (_, plain) = get(address, "/")?;
    ensure!(plain.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && plain.contains("As of "), "{plain}");
    ensure!(HOSTILE.iter().all(|name| !plain.contains(name)), "{plain}");

    let mut browser = Browser::start(program)?;
    browser.look(DESKTOP, 1, "light")?;
    browser.open(&at("/"))?;
    browser.until("document.getElementById('state').textContent === 'Live'")?;
    let shown = browser.eval(ROWS)?;
    ensure!(shown == json!(ranked(&tabr, 50).await?), "{shown}");
    let names = browser.eval("[...document.querySelectorAll('.nym')].map(nym => nym.textContent)")?;
    ensure!(HOSTILE.iter().all(|name| names.as_array().is_some_and(|names| names.contains(&json!(name)))));
    ensure!(browser.eval("document.querySelectorAll('main :is(script, img, svg, b)').length")? == 0);

    // By keyboard alone: past what is above, a search, and a member.
    let mut order = Vec::new();
    for _ in 0..5 {
        browser.press("Tab")?;
        order.push(focused(&mut browser)?);
    }
    let first = format!("m-{}", id("u0").await?);
    ensure!(order == ["skip", "home", "query", "button", &first], "{order:?}");
    ensure!(browser.eval("getComputedStyle(document.activeElement).outlineStyle")? == "solid");
    browser.eval("document.getElementById('query').focus()")?;
    browser.write("a")?;
    browser.press("Enter")?;
    browser.loaded()?;
    let found =
        tabr.ask(&profiles::Search { query: SearchQuery::parse("a")?, limit: Rows::default() }).await?;
    let mut wanted = Vec::new();
    for profile in &found.items {
        let detail = tabr.ask(&profiles::Get::ProfileId(profile.profile_id)).await?;
        wanted.push(row(detail.rank.get(), profile));
    }
    ensure!(wanted.len() > 5 && browser.eval(ROWS)? == json!(wanted), "{}", browser.eval(ROWS)?);

    // A member's page, and one of a name that is no markup.
    browser.open(&at(&format!("/members/{}", id("u0").await?)))?;
    let kinds =
        browser.eval("[...document.querySelectorAll('.kind')].map(kind => kind.textContent).sort()")?;
    ensure!(kinds == json!(["<b>bold</b>", "first ride", "water bearer"]), "{kinds}");
    browser.open(&at(&format!("/members/{}", id("h0").await?)))?;
    ensure!(browser.eval("document.querySelector('h1').textContent")? == HOSTILE[0]);
    ensure!(browser.eval("document.title")? == format!("{} · Sietch Tabr", HOSTILE[0]));
    let around = tabr.ask(&profiles::Around { profile_id: id("h0").await?, limit: Rows::of(11) }).await?;
    let wanted: Vec<Value> =
        around.items.iter().map(|member| row(member.rank.get(), &member.profile)).collect();
    ensure!(browser.eval(ROWS)? == json!(wanted), "{}", browser.eval(ROWS)?);

    // The next page, by a link.
    browser.open(&at("/"))?;
    browser.eval("document.getElementById('to-next').click()")?;
    browser.loaded()?;
    ensure!(browser.eval(&format!("{ROWS}.length"))? == 25);

    // What happens is there without a reload, and said.
    browser.open(&at("/"))?;
    browser.until("document.getElementById('state').textContent === 'Live'")?;
    browser.eval("window.mark = 1; document.querySelector('tbody a').focus()")?;
    let before = focused(&mut browser)?;
    browser.eval(LISTEN)?;
    publisher.publish(&guild.score("h0", 60_000)).await?;
    browser.until(&format!("document.querySelector('tbody .nym').textContent === {}", json!(HOSTILE[0])))?;
    browser.until("window.announced.includes('rises to naib')")?;
    ensure!(browser.eval("window.mark")? == 1, "the page was loaded again");
    ensure!(focused(&mut browser)? == before, "the focus stays where it was");
    let news = browser.eval("window.announced")?;
    ensure!(news.as_str().is_some_and(|news| news.contains(HOSTILE[0])), "{news}");
    ensure!(browser.eval("document.querySelectorAll('body :is(img, svg, b), body script').length")? == 0);
    ensure!(browser.eval(ROWS)? == json!(ranked(&tabr, 50).await?));
    tabr.ask(&admin::EraseProfile { profile_id: id("h0").await? }).await?;
    browser
        .until(&format!("!document.querySelector('table').textContent.includes({})", json!(HOSTILE[0])))?;
    let complaints = browser.complaints()?;
    ensure!(complaints.is_empty(), "{complaints:?}");

    // On a phone and on a desk, in light and in dark: it fits, and can be read.
    let (top, one) = (at("/"), at(&format!("/members/{}", id("u0").await?)));
    for (size, device) in [(DESKTOP, "desktop"), (PHONE, "phone")] {
        for scheme in ["light", "dark"] {
            browser.look(size, if device == "phone" { 2 } else { 1 }, scheme)?;
            for (page, path) in [("member", &one), ("search", &at("/search?query=fremen")), ("board", &top)] {
                browser.open(path)?;
                browser.until("document.getElementById('state').textContent === 'Live'")?;
                let wrong = browser.eval(LOOKS)?;
                ensure!(wrong == json!([]), "{device}, {scheme}, {page}: {wrong}");
                keep(&mut browser, &format!("{page}-{device}-{scheme}"))?;
            }
        }
    }
    browser.look(DESKTOP, 2, "light")?;
    browser.open(&top)?;
    browser.until("document.getElementById('state').textContent === 'Live'")?;
    browser.eval(LISTEN)?;
    publisher.publish(&guild.score("u11", 31_000)).await?;
    browser.until("window.announced.includes('Otheym rises to naib')")?;
    readme(&keep(&mut browser, "readme")?)?;

    // What is too much, or nowhere, is said in words.
    let long = "x".repeat(5000);
    for (path, status, words) in [
        ("/nowhere", 404, "nothing at this address"),
        ("/members/7", 404, "not in the standings"),
        ("/?cursor=AAAA", 400, "not valid any more"),
        (&format!("/search?query={}", "x".repeat(101)), 400, "101 characters"),
        ("/search?query=a&query=b", 400, "not written correctly"),
        (&format!("/search?query={long}"), 414, "longer than any"),
    ] {
        let answer = get(address, path)?;
        ensure!(answer.0 == status && answer.1.contains(words), "{path}: {answer:?}");
    }
    let post = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999\r\n\r\n";
    ensure!(raw(address, post).await?.1.starts_with("HTTP/1.1 405 "));
    let (_, head) = raw(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    for header in [
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'\r\n",
        "x-content-type-options: nosniff\r\n",
        "referrer-policy: no-referrer\r\n",
        "cache-control: no-store\r\n",
    ] {
        ensure!(head.contains(header), "{head}");
    }
    let mut watching = Vec::new();
    let mut refused = None;
    for _ in 0..=256 {
        let (stream, answer) = raw(address, "GET /live HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        if !answer.starts_with("HTTP/1.1 200 ") {
            refused = Some(answer);
            break;
        }
        watching.push(stream);
    }
    let refused = refused.context("there is no bound on open pages")?;
    ensure!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: "), "{refused}");
    ensure!((200..=256).contains(&watching.len()), "{} watch", watching.len());
    drop(watching);

    // Without a worker: words again, and what is shown stays.
    ensure!(worker.stop()? == Some(0));
    let away = get(address, &format!("/members/{}", id_of(&one)))?;
    ensure!(away.0 == 503 && away.1.contains("does not answer"), "{away:?}");
    ensure!(browser.eval(&format!("{ROWS}.length"))? == 50);
    Ok(())
}

fn id_of(address: &str) -> &str {
    address.rsplit('/').next().unwrap_or_default()
}

/// The README's picture is written when `MUSTER_TEST_WRITE` asks for it, since no two machines draw the same letters.
fn readme(picture: &[u8]) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/standings.png");
    if std::env::var_os("MUSTER_TEST_WRITE").is_some() {
        fs::write(&file, picture)?;
    }
    let picture = fs::read(&file).context("docs/standings.png")?;
    ensure!(picture.starts_with(b"\x89PNG") && picture.len() < 200_000, "{} bytes", picture.len());
    Ok(())
}
