// Vectors that lie at one place, as the photos of a shoe in all its sizes do. A graph of them falls apart:
// each links to the others alone, and a walk finds no way out. So walks know one of them, its twins hang on a
// ring behind it, and are met when it is found.
#include "impl.hpp"

namespace uniecs {

namespace {

// At most so far apart, of unit vectors; less where all lie close together, as those of a model that has
// learnt little do.
constexpr float TWIN = 0.05f;
// A ring is left alone where, of the last that joined it, so many are gone: until a repair a search meets
// those too.
constexpr std::size_t LATEST = 64, MOST_GONE = 32;

}  // namespace

// Make a node, not yet linked, the twin of a candidate, if it is one of any.
bool Graph::Impl::join(Node node, const std::vector<Near>& candidates) {
    for (const Near& each : candidates) {
        if (!twins(node, each.node)) return false;
        const NodeLock lock(nodes.tower(each.node).lock);
        std::size_t seen = 0, gone = 0;
        any_twin(each.node, [&](Node twin) {
            gone += !nodes.linked_for_good(twin) || leaving.count(twin);
            return ++seen == LATEST;
        });
        if (!nodes.linked_for_good(each.node) || leaving.count(each.node) || gone >= MOST_GONE) continue;
        Tower& tower = nodes.tower(node);
        tower.leads = false;
        tower.layers = 0;
        delete[] tower.upper.exchange(nullptr);
        nodes.header(node).twin.store(nodes.twin(each.node) + 1);
        nodes.header(each.node).twin.store(node + 1, std::memory_order_release);
        return true;
    }
    return false;
}

bool Graph::Impl::twins(Node a, Node b) const {
    std::vector<float> one(config.dim), other(config.dim);
    nodes.codec.decode(nodes.vector(a), nodes.scale(a), one.data());
    nodes.codec.decode(nodes.vector(b), nodes.scale(b), other.data());
    const float spread = nodes.squared_distance(one.data(), nodes.centre().data());
    return nodes.squared_distance(one.data(), other.data()) <= TWIN * TWIN * std::min(1.0f, spread);
}

// After a node was removed that led to others of its ring, one of those leads to them.
void Graph::Impl::promote(Node gone) {
    if (!nodes.tower(gone).leads) return;
    Node heir = NO_NODE;
    const bool led = any_twin(gone, [&](Node twin) {
        if (!nodes.linked_for_good(twin)) return false;
        heir = twin;
        return nodes.tower(twin).leads;
    });
    if (led || heir == NO_NODE) return;
    nodes.tower(heir).leads = true;
    insert(heir, false);
}

// Removed nodes leave their rings: after it no search meets them that begins now. Whether there were any.
bool Graph::Impl::leave_rings() {
    bool any = false;
    for (Node node = 0, n = nodes.count.load(); node < n; ++node) {
        if (!nodes.linked_for_good(node)) continue;
        Node next = nodes.twin(node);
        if (nodes.linked_for_good(next)) continue;
        while (!nodes.linked_for_good(next)) next = nodes.twin(next);
        nodes.header(node).twin.store(next == node ? 0 : next + 1, std::memory_order_release);
        any = true;
    }
    return any;
}

// A node whose ring does not close, or where nothing leads to what is alive; NO_NODE if there is none.
Node Graph::Impl::without_ring() const {
    const Node count = nodes.count.load();
    std::vector<bool> followed(count), checked(count);
    for (Node node = 0; node < count; ++node) {
        const Node next = nodes.twin(node);
        if (next != node && (nodes.header(next).twin.load() == 0 || followed[next])) return node;
        followed[next] = true;
    }
    for (Node node = 0; node < count; ++node) {
        if (checked[node] || nodes.twin(node) == node) continue;
        bool alive = false, led = false;
        any_twin(node, [&](Node twin) {
            checked[twin] = true;
            alive |= nodes.linked_for_good(twin);
            led |= nodes.leads_for_good(twin);
            return false;
        });
        if (alive && !led) return node;
    }
    return NO_NODE;
}

}  // namespace uniecs
