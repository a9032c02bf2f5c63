//! The pages, as HTML that is whole without script and style.

use std::fmt::Display;

use muster_messaging::api::community::CommunityStats;
use muster_messaging::api::profiles::{MemberPosition, ProfileDetail, RankedProfile};
use muster_messaging::api::{Badge, Page, Profile};
use muster_messaging::domain::{ProfileId, Rank, SearchQuery, Tenure, Tier};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::html::Html;
use crate::problem::Problem;

/// What stands between the head and the foot of a page.
pub(crate) struct Content {
    /// What the page is about.
    pub(crate) title: String,
    /// The text in the search box.
    pub(crate) query: String,
    pub(crate) html: Html,
}

/// A whole page of the community of this name.
pub(crate) fn page(community: &str, content: Content) -> String {
    let mut page = Html::default();
    page.markup("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>");
    page.text(content.title).markup(" · ").text(community).markup(
        "</title>\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"stylesheet\" href=\"/standings.css\">\n\
         <script src=\"/standings.js\" defer></script>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#content\">Skip to the content</a>\n\
         <header class=\"top\"><a class=\"home\" href=\"/\"><bdi>",
    );
    page.text(community).markup(
        "</bdi></a>\n<form role=\"search\" action=\"/search\">\
         <label for=\"query\">Find a member</label>\
         <input id=\"query\" name=\"query\" type=\"search\" autocomplete=\"off\" spellcheck=\"false\" required maxlength=\"",
    );
    page.text(SearchQuery::MAX).markup("\" value=\"").text(content.query).markup(
        "\"><button>Search</button></form></header>\n\
         <p class=\"strip\"><span id=\"state\">As of ",
    );
    page.text(clock(OffsetDateTime::now_utc()))
        .markup("</span> <span id=\"news\" role=\"status\" aria-live=\"polite\"></span></p>\n<main id=\"content\" tabindex=\"-1\">\n");
    page.add(content.html).markup("</main>\n</body>\n</html>\n");
    page.into_string()
}

/// The standings, from the top or from where a cursor led.
pub(crate) fn board(stats: &CommunityStats, ranked: &Page<RankedProfile>, is_top: bool) -> Content {
    let mut html = Html::default();
    html.markup("<h1>Standings</h1>\n<p class=\"lead\">");
    for (number, one, many) in [
        (stats.members, " member", " members"),
        (stats.badges, " badge", " badges"),
        (stats.promotions_this_week, " promotion this week", " promotions this week"),
    ] {
        html.markup("<span>")
            .text(grouped(number))
            .markup(if number == 1 { one } else { many })
            .markup("</span> ");
    }
    html.markup("</p>\n");
    let rows = ranked.items.iter().map(|member| Row { rank: Some(member.rank), profile: &member.profile });
    html.add(table("Members by conviction", rows, None, stats));
    if !is_top || ranked.next.is_some() {
        html.markup("<nav class=\"pages\" aria-label=\"Pages\">");
        if !is_top {
            html.markup("<a id=\"to-top\" href=\"/\">Top of the standings</a> ");
        }
        if let Some(next) = &ranked.next {
            html.markup("<a id=\"to-next\" rel=\"next\" href=\"/?cursor=").text(next);
            html.markup("\">Next ").text(ranked.limit).markup("</a>");
        }
        html.markup("</nav>\n");
    }
    Content { title: "Standings".to_owned(), query: String::new(), html }
}

/// What a search found, with the ranks of those who are still there.
pub(crate) fn found(
    query: &SearchQuery,
    found: &Page<Profile>,
    standings: &[ProfileDetail],
    stats: &CommunityStats,
) -> Content {
    let mut html = Html::default();
    html.markup("<h1>Search</h1>\n<p class=\"lead\">");
    match found.items.len() {
        0 => html.markup("Nobody’s name has “"),
        1 => html.markup("One name has “"),
        count => {
            let is_full = u32::try_from(count).is_ok_and(|count| count >= found.limit);
            html.markup(if is_full { "The first " } else { "" }).text(count).markup(" names with “")
        }
    };
    html.markup("<bdi>").text(query.as_str()).markup("</bdi>”</p>\n");
    if !found.items.is_empty() {
        let rows = found.items.iter().map(|profile| {
            let detail = standings.iter().find(|detail| detail.profile.profile_id == profile.profile_id);
            Row { rank: detail.map(|detail| detail.rank), profile }
        });
        html.add(table("Members found, best match first", rows, None, stats));
    }
    let query = query.as_str().to_owned();
    Content { title: format!("Search for {query}"), query, html }
}

/// The page that a search box without a word leads to.
pub(crate) fn nothing_searched() -> Content {
    let mut html = Html::default();
    html.markup("<h1>Search</h1>\n<p class=\"lead\">Type a part of a name above.</p>\n");
    Content { title: "Search".to_owned(), query: String::new(), html }
}

/// One member with those ranked around them.
pub(crate) fn member(
    detail: &ProfileDetail,
    position: &MemberPosition,
    badges: &Page<Badge>,
    around: &Page<RankedProfile>,
    stats: &CommunityStats,
) -> Content {
    let profile = &detail.profile;
    let mut html = Html::default();
    html.markup("<h1 data-profile=\"").text(profile.profile_id).markup("\"><bdi class=\"nym\">");
    html.text(&profile.nym).markup("</bdi></h1>\n<p class=\"lead\">");
    html.add(chip(profile.tier.as_ref(), stats)).markup(" <span>");
    html.markup(tenure(detail.tenure)).markup("</span> <span>Here since ").text(day(profile.joined_at));
    html.markup("</span></p>\n<dl class=\"facts\">");
    fact(&mut html, "Rank", grouped(detail.rank.get()));
    fact(&mut html, "Conviction", grouped(profile.conviction.get()));
    fact(&mut html, "Rank by badges", grouped(detail.badge_rank.get()));
    if let Some(distance) = position.distance_above {
        fact(&mut html, "To the next above", grouped(distance));
    }
    if let (Some(tier), Some(distance)) = (&position.next_tier, position.distance_to_next_tier) {
        fact(&mut html, format_args!("To {tier}"), grouped(distance));
    }
    html.markup("</dl>\n");
    if position.at_risk {
        html.markup("<p>Holds one of the last places of their tier.</p>\n");
    }
    html.markup("<h2>Badges</h2>\n");
    if badges.items.is_empty() {
        html.markup("<p>None yet.</p>\n");
    } else {
        html.markup("<ul class=\"badges\">");
        for badge in &badges.items {
            html.markup("<li><bdi class=\"kind\">").text(&badge.kind).markup("</bdi> <span>");
            html.text(day(badge.awarded_at)).markup("</span>");
            if let Some(reason) = &badge.reason {
                html.markup(" <bdi>").text(reason).markup("</bdi>");
            }
            html.markup("</li>\n");
        }
        html.markup("</ul>\n");
        if badges.next.is_some() {
            html.markup("<p>The newest ").text(badges.limit).markup(" of ");
            html.text(profile.badge_count).markup(".</p>\n");
        }
    }
    html.markup("<h2>The ranks around</h2>\n");
    let rows = around.items.iter().map(|member| Row { rank: Some(member.rank), profile: &member.profile });
    html.add(table("Members ranked around this one", rows, Some(profile.profile_id), stats));
    Content { title: profile.nym.to_string(), query: String::new(), html }
}

/// Why there is no other page.
pub(crate) fn problem(problem: &Problem) -> Content {
    let mut html = Html::default();
    html.markup("<h1>").text(problem.title).markup("</h1>\n<p class=\"lead\">").text(&problem.text);
    html.markup("</p>\n<p><a href=\"/\">To the standings</a></p>\n");
    Content { title: problem.title.to_owned(), query: String::new(), html }
}

struct Row<'a> {
    rank: Option<Rank>,
    profile: &'a Profile,
}

/// The roles say again what the elements are, since a phone's layout takes that from a table.
fn table<'a>(
    caption: &'static str,
    rows: impl Iterator<Item = Row<'a>>,
    current: Option<ProfileId>,
    stats: &CommunityStats,
) -> Html {
    let mut html = Html::default();
    html.markup("<table role=\"table\"><caption>").text(caption).markup(
        "</caption>\n<thead role=\"rowgroup\"><tr role=\"row\">\
         <th role=\"columnheader\" scope=\"col\" class=\"rank\">Rank</th>\
         <th role=\"columnheader\" scope=\"col\" class=\"who\">Name</th>\
         <th role=\"columnheader\" scope=\"col\" class=\"tier\">Tier</th>\
         <th role=\"columnheader\" scope=\"col\" class=\"count\">Badges</th>\
         <th role=\"columnheader\" scope=\"col\" class=\"score\">Conviction</th></tr></thead>\n\
         <tbody role=\"rowgroup\">\n",
    );
    for Row { rank, profile } in rows {
        let id = profile.profile_id;
        html.markup("<tr role=\"row\" data-profile=\"").text(id).markup("\"");
        if current == Some(id) {
            html.markup(" aria-current=\"true\"");
        }
        html.markup("><td role=\"cell\" class=\"rank\">");
        match rank {
            Some(rank) => html.text(grouped(rank.get())),
            None => html.markup("–"),
        };
        html.markup("</td><td role=\"cell\" class=\"who\"><a id=\"m-").text(id).markup("\" href=\"/members/");
        html.text(id).markup("\"><bdi class=\"nym\">").text(&profile.nym);
        html.markup("</bdi></a></td><td role=\"cell\" class=\"tier\">")
            .add(chip(profile.tier.as_ref(), stats));
        html.markup("</td><td role=\"cell\" class=\"count\">").text(profile.badge_count);
        html.markup("<span class=\"unit\">").markup(if profile.badge_count == 1 {
            " badge"
        } else {
            " badges"
        });
        html.markup("</span></td><td role=\"cell\" class=\"score\">").text(grouped(profile.conviction.get()));
        html.markup("</td></tr>\n");
    }
    html.markup("</tbody></table>\n");
    html
}

/// A tier, in the colour of its place among the community's tiers, highest first.
fn chip(tier: Option<&Tier>, stats: &CommunityStats) -> Html {
    let mut html = Html::default();
    let Some(tier) = tier else {
        html.markup("<span class=\"none\">no tier</span>");
        return html;
    };
    let place = stats.tiers.iter().position(|count| count.tier.as_ref() == Some(tier));
    html.markup("<bdi class=\"chip ").markup(match place {
        Some(0) => "t0",
        Some(1) => "t1",
        Some(2) => "t2",
        Some(3) => "t3",
        Some(4) => "t4",
        _ => "t5",
    });
    html.markup("\">").text(tier).markup("</bdi>");
    html
}

fn fact(html: &mut Html, what: impl Display, value: String) {
    html.markup("<div><dt>").text(what).markup("</dt><dd>").text(value).markup("</dd></div>");
}

const fn tenure(tenure: Tenure) -> &'static str {
    match tenure {
        Tenure::Og => "Newcomer",
        Tenure::Member => "Member",
        Tenure::Veteran => "Veteran",
        Tenure::Elder => "Elder",
    }
}

/// A number with a comma between thousands.
fn grouped(number: impl Display) -> String {
    let text = number.to_string();
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |digits| ("−", digits));
    let mut grouped = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && digits.len().saturating_sub(index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn day(at: OffsetDateTime) -> String {
    at.format(format_description!("[day padding:none] [month repr:long] [year]")).unwrap_or_default()
}

fn clock(at: OffsetDateTime) -> String {
    at.format(format_description!("[hour]:[minute]:[second] UTC")).unwrap_or_default()
}
