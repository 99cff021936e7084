//! Which requests may open a WebSocket: a browser lets every page of the world try.
//!
//! RFC 6455, section 10.2: `Origin`, which a browser sends always and no page can change, has to be
//! one that the host lists, or the very origin that the page connects to. A page can have its own name
//! resolve to this machine ("DNS rebinding"), and is then of the same origin; so the name in `Host`
//! (RFC 9112, section 3.2) has to be an address, localhost, or one that the host lists, whoever asks.
//! Where TLS has proven the name to the client, no page can have it mean another machine.
//! `avow.channel.web_origin` is the same rule for the proxy; one table of cases tests both.

const std = @import("std");

pub const Rule = struct {
    /// Origins of pages, with a line feed between them.
    origins: []const u8,
    /// Names that clients know this server by, with a line feed between them.
    hosts: []const u8,
    /// TLS has proven the server's name to the client.
    name_proven: bool,
};

pub const Verdict = enum { allowed, malformed_host, foreign_host, foreign_origin };

/// `host` is the request's, `origin` a page's.
pub fn judge(rule: *const Rule, host: []const u8, origin: ?[]const u8) Verdict {
    const name = nameIn(host) orelse return .malformed_host;
    if (origin) |page| if (listed(rule.origins, page)) return .allowed;
    const own = isOwn(name) or listed(rule.hosts, name);
    if (!own and !rule.name_proven) return .foreign_host;
    const page = origin orelse return .allowed;
    for ([_][]const u8{ "http://", "https://" }) |scheme| {
        if (page.len <= scheme.len or !same(page[0..scheme.len], scheme)) continue;
        if (own and same(page[scheme.len..], host)) return .allowed;
    }
    return .foreign_origin;
}

fn listed(list: []const u8, wanted: []const u8) bool {
    var entries = std.mem.splitScalar(u8, list, '\n');
    while (entries.next()) |entry| {
        if (entry.len != 0 and same(entry, wanted)) return true;
    }
    return false;
}

/// Without its port, and without the dot of a name that is complete; null where it is none.
fn nameIn(host: []const u8) ?[]const u8 {
    if (host.len != 0 and host[0] == '[') {
        const end = std.mem.findScalar(u8, host, ']') orelse return null;
        if (end == 1 or !isPort(host[end + 1 ..])) return null;
        for (host[1..end]) |letter| {
            if (!std.ascii.isHex(letter) and letter != ':' and letter != '.') return null;
        }
        return host[0 .. end + 1];
    }
    const colon = std.mem.findScalar(u8, host, ':') orelse host.len;
    if (colon == 0 or !isPort(host[colon..])) return null;
    for (host[0..colon]) |letter| switch (letter) {
        0...' ', 0x7F, '[', ']', '/', '@' => return null,
        else => {},
    };
    return if (host[colon - 1] == '.') host[0 .. colon - 1] else host[0..colon];
}

/// Whether a name means this machine whoever asks.
fn isOwn(name: []const u8) bool {
    // No name has a colon: what stands in brackets can be an address only (RFC 3986, 3.2.2).
    if (name.len != 0 and name[0] == '[') return std.mem.findScalar(u8, name, ':') != null;
    const suffix = ".localhost";
    if (same(name, suffix[1..])) return true;
    if (name.len > suffix.len and same(name[name.len - suffix.len ..], suffix)) return true;
    return isAddress(name);
}

fn isPort(text: []const u8) bool {
    if (text.len == 0) return true;
    if (text[0] != ':' or text.len > 6) return false;
    for (text[1..]) |digit| if (!std.ascii.isDigit(digit)) return false;
    return text.len > 1;
}

/// Four numbers to 255, as browsers write every IPv4 address.
fn isAddress(name: []const u8) bool {
    var count: u8 = 0;
    var parts = std.mem.splitScalar(u8, name, '.');
    while (parts.next()) |part| : (count += 1) {
        if (count == 4 or part.len == 0 or part.len > 3 or (part.len > 1 and part[0] == '0')) return false;
        for (part) |digit| if (!std.ascii.isDigit(digit)) return false;
        _ = std.fmt.parseInt(u8, part, 10) catch return false;
    }
    return count == 4;
}

fn same(a: []const u8, b: []const u8) bool {
    return std.ascii.eqlIgnoreCase(a, b);
}
