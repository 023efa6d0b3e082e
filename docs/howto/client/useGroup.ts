import { useMemo, useSyncExternalStore } from "react";
import { RealtimeError, type RealtimeConnection, type RealtimeEventMap } from "django-channels-realtime";

export interface Item {
  id: string;
}

function report(error: unknown) {
  // React's strict mode leaves each group once before it has joined it.
  if (!(error instanceof RealtimeError && error.code === "left")) console.error(error);
}

/** The items of one group, as a store that React can subscribe to. */
export function groupStore<T extends Item>(
  connection: RealtimeConnection,
  group: string,
  load: () => Promise<readonly T[]>,
) {
  // By id, so that an item that arrives twice (in the loaded state, and as a message) is there once.
  let items: ReadonlyMap<string, T> = new Map();
  const subscribers = new Set<() => void>();
  let loads = 0;

  function replace(newer: Map<string, T>) {
    items = newer;
    for (const changed of subscribers) changed();
  }

  async function reload() {
    const mine = ++loads;
    const before = items;
    const loaded = await load();
    if (mine !== loads) return; // A later reset has begun another load.
    // What arrived in the meantime is newer than what was loaded.
    const arrived = [...items].filter(([id, item]) => before.get(id) !== item);
    replace(new Map([...loaded.map((item) => [item.id, item] as const), ...arrived]));
  }

  function onMessage({ detail }: RealtimeEventMap["message"]) {
    if (detail.group !== group) return;
    const item = detail.data as T;
    replace(new Map([...items, [item.id, item]]));
  }

  function onReset({ detail }: RealtimeEventMap["reset"]) {
    if (detail.group === group) reload().catch(report);
  }

  function onRemoved({ detail }: RealtimeEventMap["removed"]) {
    if (detail.group !== group) return;
    loads += 1; // A load that is under way changes nothing.
    replace(new Map()); // The user may not see the items any more.
  }

  function start() {
    connection.addEventListener("message", onMessage);
    connection.addEventListener("reset", onReset);
    connection.addEventListener("removed", onRemoved);
    // First the group, then the state: what is published between the two arrives as a message.
    connection.join(group).then(reload).catch(report);
  }

  function stop() {
    connection.removeEventListener("message", onMessage);
    connection.removeEventListener("reset", onReset);
    connection.removeEventListener("removed", onRemoved);
    connection.leave(group).catch(report);
  }

  return {
    subscribe(changed: () => void) {
      subscribers.add(changed);
      if (subscribers.size === 1) start();
      return () => {
        subscribers.delete(changed);
        if (subscribers.size === 0) stop();
      };
    },
    getSnapshot: () => items,
  };
}

/** The items of a group, by id; they change with each message. `load` must be the same function in each render. */
export function useGroup<T extends Item>(
  connection: RealtimeConnection,
  group: string,
  load: () => Promise<readonly T[]>,
): ReadonlyMap<string, T> {
  const store = useMemo(() => groupStore(connection, group, load), [connection, group, load]);
  return useSyncExternalStore(store.subscribe, store.getSnapshot, store.getSnapshot);
}
