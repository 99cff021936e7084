//! Which web pages may open a WebSocket: a browser lets every page of the world try.
//!
//! RFC 6455, section 10.2: `Origin`, which a browser sends always and no page can change, has to be
//! one that the host lists, or the very origin that the page connects to. For the latter a page can
//! have its own name resolve to this machine ("DNS rebinding"), so there the name in `Host` (RFC
//! 9112, section 3.2) has to be an address or localhost, which no page can have mean another
//! machine. Programs that are no browsers send no `Origin`, and are not asked.
//! `avow.channel.web_origin` is the same rule for the proxy; a test compares the two.

const std = @import("std");

/// `listed` are origins with a line feed between them.
pub fn allowed(host: []const u8, origin: []const u8, listed: []const u8) bool {
    var entries = std.mem.splitScalar(u8, listed, '\n');
    while (entries.next()) |entry| {
        if (entry.len != 0 and same(entry, origin)) return true;
    }
    for ([_][]const u8{ "http://", "https://" }) |scheme| {
        if (origin.len <= scheme.len or !same(origin[0..scheme.len], scheme)) continue;
        if (same(origin[scheme.len..], host)) return isOwn(host);
    }
    return false;
}

/// Whether a `Host` names this machine whoever asks.
fn isOwn(host: []const u8) bool {
    if (host.len != 0 and host[0] == '[') {
        const end = std.mem.findScalar(u8, host, ']') orelse return false;
        for (host[1..end]) |letter| {
            if (!std.ascii.isHex(letter) and letter != ':' and letter != '.') return false;
        }
        // No name has a colon: what stands in brackets can be an address only (RFC 3986, 3.2.2).
        return std.mem.findScalar(u8, host[1..end], ':') != null and isPort(host[end + 1 ..]);
    }
    const colon = std.mem.findScalar(u8, host, ':') orelse host.len;
    if (!isPort(host[colon..])) return false;
    const name = if (colon != 0 and host[colon - 1] == '.') host[0 .. colon - 1] else host[0..colon];
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
